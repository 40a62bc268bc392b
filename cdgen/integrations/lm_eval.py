"""The model type `cdgen` for EleutherAI's lm-evaluation-harness: its tasks, with cdgen's scorer and decoding engine.

lm-eval finds only models that have been imported, so this module is also a command: `lm_eval` with one more model type.

    python -m cdgen.integrations.lm_eval --model cdgen --model_args pretrained=run@best --tasks blimp

Texts are tokenised by lm-eval's own rules, so results agree with `--model hf`. In Python:

    from cdgen.integrations.lm_eval import CdgenLM
    lm_eval.simple_evaluate(model=CdgenLM("run@best"), tasks=["blimp"])
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cdgen
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.evaluation.scoring.contrastive_scorer import ContrastiveScorer
from cdgen.evaluation.scoring.conventions import Tokens, windows
from cdgen.evaluation.scoring.scorer import Scorer, TokenScores
from cdgen.integrations.lm_eval_options import (
    DISTRIBUTION,
    generation_params,
    max_num_seqs,
    pair_params,
    split_stops,
    stop_strings,
)
from cdgen.models.bad import parse_bad
from cdgen.models.dtypes import dtype_name
from cdgen.models.tokenizers import encode
from cdgen.values import shown

try:
    import lm_eval.models  # noqa: F401  (lm-eval registers its own model types only if none is registered yet)
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise ImportError(f'cdgen.integrations.lm_eval: needs lm-eval ({error}); pip install ".[lm-eval]"') from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

_UNSTATED_POSITIONS = 2048  # what lm-eval assumes


@register_model("cdgen")
class CdgenLM(TemplateLM):
    """A model that cdgen loads, or the contrastive distribution of two of them, for lm-evaluation-harness.

    With `bad`, log-probabilities are those of the distribution that contrastive decoding draws from, and generation
    decodes the pair. The default method is `contrastive_tail`: with `contrastive`, all tokens except the candidates
    have probability 0, so most continuations would have the log-probability -inf and could not be compared.

    Args:
        pretrained: the model, or GOOD: anything that :class:`cdgen.ContrastiveLM` takes.
        bad: BAD: `dropout:0.3`, `layers:12`, or a model like `pretrained`.
        method: one of the decoding methods of :class:`cdgen.SamplingParams`; only with `bad`.
        tokenizer: a tokenizer or its folder; default: the model's own.
        dtype: dtype of the weights; default: float32 on the CPU, on a GPU the checkpoint's 16-bit dtype.
        device: default: cuda if available.
        batch_size: maximum number of sequences that are decoded at the same time. 1, which lm-eval passes by default,
            and "auto" stand for the default of :class:`cdgen.ContrastiveLM`. Scoring uses `batch_tokens` instead.
        batch_tokens: number of tokens, padding included, in one forward pass while scoring; default: by device.
        trust_remote_code: run Python code that comes with a checkpoint.
        sampling: `alpha`, `contrast_strength`, `good_weight`, `temperature`, `top_k`, `top_p`, `outside_head` of
            :class:`cdgen.SamplingParams`; only with `bad`.
    Attributes:
        lm: the loaded models.
        params: the contrastive distribution; None without `bad`.
    Raises:
        InputError: the models cannot be loaded, have no tokenizer, or an argument is unknown or out of range.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str,
        bad: str | None = None,
        *,
        method: str | None = None,
        tokenizer: "str | PreTrainedTokenizerBase | None" = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        **sampling: Any,
    ) -> None:
        super().__init__()
        self.params = pair_params(bad, method, sampling)
        self.lm = ContrastiveLM(
            pretrained,
            **(parse_bad(bad) if bad is not None else {}),
            tokenizer=tokenizer,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            max_num_seqs=max_num_seqs(batch_size),
        )
        if self.lm.tokenizer is None:
            raise InputError(f"{pretrained}: has no tokenizer; pass tokenizer=FOLDER")
        self.tokenizer = self.lm.tokenizer
        start = self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        if start is None:
            raise InputError(
                f"{pretrained}: the tokenizer has neither a start-of-text nor an end-of-text token, one of which "
                "stands for an empty context"
            )
        self._start = int(start)
        self._device = self.lm.pair.good.device
        self._scorer: Scorer | ContrastiveScorer
        if self.params is None:
            self._scorer = Scorer(self.lm.pair.good, batch_tokens)
        else:
            self._scorer = ContrastiveScorer(self.lm.pair, self.params, batch_tokens)

    @property
    def eot_token_id(self) -> int | None:
        """The end-of-text token."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: the start-of-text token, otherwise the end-of-text token."""
        return self._start

    @property
    def max_length(self) -> int:
        """The number of tokens that the models can read."""
        limit = self.lm.pair.position_limit(self._base)
        if limit is None and self.tokenizer.model_max_length < 2**31:
            limit = int(self.tokenizer.model_max_length)
        return limit or _UNSTATED_POSITIONS

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, which lm-eval uses in the file names of cached requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def _base(self) -> SamplingParams:
        """The parameters that a task's generation options change: plain sampling if there is no BAD."""
        return self.params or SamplingParams.for_method("ancestral")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text. Special tokens such as "</s>" are recognised, as in lm-eval's `hf`."""
        if add_special_tokens is None:  # a chat template writes the start-of-text token into the text
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        ids: list[int] = encode(self.tokenizer, string, "a request", add_special=add_special_tokens, parse_special=True)
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the messages of a chat as one text.

        Raises:
            InputError: the tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise InputError(
                f"{self.lm.pair.good.name}: its tokenizer has no chat template; leave out --apply_chat_template"
            )
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text. A text that is too long for the models is scored in windows."""
        texts = [request.args[0] for request in requests]
        parts = [
            list(windows(Tokens([self.prefix_token_id, *ids], 1), self.max_length))
            for ids in map(self.tok_encode, texts)
        ]
        names = [text for text, each in zip(texts, parts, strict=True) for _ in each]
        scores = iter(self._score([part for each in parts for part in each], names, disable_tqdm))
        return [sum(float(next(scores).logprobs.sum()) for _ in each) for each in parts]

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each text, up to the first of the strings `until`.

        A text that is too long loses its start. Generation is greedy unless `temperature` or `do_sample` is given.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(index)
        found = [""] * len(requests)
        for members in groups.values():
            contexts = [requests[index].args[0] for index in members]
            for index, text in zip(
                members, self._generate(contexts, requests[members[0]].args[1], disable_tqdm), strict=True
            ):
                found[index] = text
        return found

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval adds to its results: version, dtype, fingerprints of the models, and the distribution."""
        pair = self.lm.pair
        sampling = {name: getattr(self.params, name) for name in DISTRIBUTION} if self.params else None
        return {
            "cdgen_version": cdgen.__version__,
            "model_dtype": dtype_name(pair.good.module.dtype),
            "model_sha": pair.good.fingerprint,
            "bad_sha": pair.bad.fingerprint if pair.bad else None,
            "sampling": sampling,
        }

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is greedy.

        Args:
            requests: (context and continuation as text, token ids of the context, token ids of the continuation).
            disable_tqdm: show no progress.
        """
        sequences, names = [], []
        for (context, continuation), before, after in requests:
            if not 0 < len(after) <= self.max_length:
                raise InputError(
                    f"{self.lm.pair.good.name}: the continuation {shown(continuation)} has {len(after)} tokens; it "
                    f"must have 1 to {self.max_length}, the model's positions"
                )
            ids = [*before, *after][-self.max_length - 1 :]  # the last token is not read
            sequences.append(Tokens(ids, len(ids) - len(after)))
            names.append(context + continuation)
        scores = self._score(sequences, names, disable_tqdm)
        return [(float(each.logprobs.sum()), bool(each.greedy.all())) for each in scores]

    def _score(self, sequences: list[Tokens], texts: Sequence[str], disable_tqdm: bool) -> list[TokenScores]:
        """Return the scores of sequences; `texts` are for error messages."""
        with tqdm(total=len(sequences), disable=disable_tqdm, desc="Scoring") as bar:
            scores = self._scorer.score(sequences, lambda done: bar.update(done - bar.n))
        for each, text in zip(scores, texts, strict=True):
            if any(each.logprobs != each.logprobs):
                raise InputError(f"{self.lm.pair.good.name}: gives NaN as a log-probability in the text {shown(text)}")
        return scores

    def _generate(self, contexts: list[str], options: Mapping[str, Any], disable_tqdm: bool) -> list[str]:
        """Return a continuation of each text; the options are the same for all."""
        stop = stop_strings(options.get("until"), self.tokenizer.eos_token)
        params = generation_params(options, self._base, *split_stops(stop, self.tokenizer))
        room = self.max_length - (params.max_tokens or 0)
        if room < 1:
            raise InputError(
                f"max_gen_toks = {params.max_tokens}: leaves no room for a prompt in the model's {self.max_length} "
                "positions"
            )
        prompts = [(self.tok_encode(context) or [self.prefix_token_id])[-room:] for context in contexts]
        with tqdm(disable=disable_tqdm, desc="Generating", unit=" tokens") as bar:
            outputs = self.lm.generate(prompts, params, bar.update)
        return [self._text(output.outputs[0].token_ids, stop) for output in outputs]

    def _text(self, ids: Sequence[int], stop: Iterable[str]) -> str:
        """Return the text of new tokens up to the first stop string."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        for string in stop:
            text = text.split(string, 1)[0]
        return text


def main() -> int:
    """Run lm-eval's command line with the model type `cdgen`; return the exit code."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
