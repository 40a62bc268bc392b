"""What GOOD and BAD predict at each token of a text, and how likely the token was to be drawn.

Both models read the whole text once, in blocks, with transformers' own forward and a key-value cache. Only the logits
of one block are in memory, since those of a whole text may take gigabytes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cdgen.engine.adjustments import Adjustment, Bias, Penalties, penalty_strengths
from cdgen.engine.bans import bad_word_bans, repeated_ngram_bans, word_table
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.predictions import predictions
from cdgen.engine.prompts import prompt_ids
from cdgen.engine.sampling_params import SamplingParams, check_params
from cdgen.engine.stopping import stop_token_ids
from cdgen.errors import InputError
from cdgen.hardware import to_device
from cdgen.models.in_place_cache import InPlaceCache
from cdgen.models.language_model import LanguageModel
from cdgen.models.pieces import pieces, special_ids, texts
from cdgen.rng import private_noise, seed_noise
from cdgen.values import integer
from cdgen.viewer.explanation import ExplainedToken, Explanation, Prediction

if TYPE_CHECKING:
    from cdgen.engine.prompts import Prompt

_LOGITS = 2**24  # logits of each model in memory at once
_SCORES = 2**18  # scores that are computed at once, in float64: intermediate results then fit into a CPU's cache
_POSITIONS = 256  # positions in memory at once: their n-grams are compared with those of the whole text
_DECIDING = (
    "method", "alpha", "contrast_strength", "good_weight", "temperature", "top_k", "top_p", "outside_head",
    "no_repeat_ngram_size", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words",
    "min_tokens",
)  # fmt: skip


def explain(
    pair: ModelPair,
    bos_token_id: int | None,
    text: "Prompt",
    params: SamplingParams | None,
    prompt_length: int | None,
) -> Explanation:
    """Explain a text; see :meth:`cdgen.ContrastiveLM.explain`.

    Args:
        pair: the models.
        bos_token_id: the start-of-text token, or None.
        text, params, prompt_length: arguments of the method.
    """
    if params is None:
        params = SamplingParams() if pair.bad else SamplingParams(contrast_strength=0.0)
    check_params(params)
    pair.check_params(params)
    ids = prompt_ids(pair.tokenizer, bos_token_id, text, "text")
    pair.check_ids(ids, "text: token id")
    for model in _models(pair):
        if model.position_limit is not None and len(ids) > model.position_limit:
            raise InputError(
                f"text: has {len(ids)} tokens, but {model.name} has {model.position_limit} positions; shorten it"
            )
    if prompt_length is None:
        prompt_length = int(ids[0] == bos_token_id)
    prompt_length = integer("prompt_length", prompt_length, 0, len(ids))
    predicted = _all_predictions(pair, ids, params, prompt_length)
    added = texts(pair.tokenizer, ids)
    listed = {one.token_id for prediction in predicted for one in prediction.listed} | set(ids)
    return Explanation(
        tokens=tuple(map(ExplainedToken, ids, added, [None, *predicted])),
        prompt_length=prompt_length,
        pieces=pieces(pair.tokenizer, listed),
        special_ids=frozenset(special_ids(pair.tokenizer, listed)),
        good=pair.good.name,
        bad=None if pair.bad is None else pair.bad.name,
        params=_deciding(pair, params),
    )


def _models(pair: ModelPair) -> list[LanguageModel]:
    return [pair.good] if pair.bad is None else [pair.good, pair.bad]


def _deciding(pair: ModelPair, params: SamplingParams) -> dict[str, Any]:
    """Return the parameters that decide the distribution, as JSON values."""
    noisy = any(model.noisy for model in _models(pair))
    values = {name: getattr(params, name) for name in (*_DECIDING, *(["seed"] if noisy else []))}
    values |= {"logit_bias": {str(token): bias for token, bias in params.logit_bias}, "bad_words": [*params.bad_words]}
    return {name: float(value) if isinstance(value, float) else value for name, value in values.items()}


def _all_predictions(
    pair: ModelPair, ids: Sequence[int], params: SamplingParams, prompt_length: int
) -> list[Prediction]:
    """Return the predictions of all tokens after the first one."""
    device = pair.good.device
    models, text = _models(pair), torch.tensor(ids, device=device)  # [T]
    caches = [model.new_cache(len(ids)) for model in models]
    changes = _Changes(pair, text, params, prompt_length)
    size = max(1, min(_POSITIONS, _LOGITS // max(model.width for model in models)))
    found: list[Prediction] = []
    with torch.inference_mode(), private_noise(device):
        seed_noise(device, params.seed)
        for start in range(0, len(ids) - 1, size):
            position = torch.arange(start, min(start + size, len(ids) - 1), device=device)  # [N]
            logits = [
                _logits(model, cache, text, position, pair.vocab_size)  # [N, V]
                for model, cache in zip(models, caches, strict=True)
            ]
            following = position + 1
            rows = max(1, _SCORES // pair.vocab_size)
            parts = (x.split(rows) for x in (following, *logits))
            for at, good, *bad in zip(*parts, strict=True):
                adjusted = changes.adjusted(good, at)
                found += predictions(good, bad[0] if bad else None, text[at], params, adjusted, changes.banned(at))
    return found


def _logits(model: LanguageModel, cache: InPlaceCache, text: Tensor, position: Tensor, vocab_size: int) -> Tensor:
    """Return logits float32 [N, V] at the positions int64 [N] of `text`, which follow those in the cache."""
    mask = text.new_ones(1, cache.get_seq_length() + len(position))
    logits = model.logits(text[None, position], mask, position[None], cache)[0, :, :vocab_size].float()
    if not logits.isfinite().all():
        first = cache.get_seq_length() - len(position)
        raise InputError(
            f"{model.name}: gives logits that are NaN or infinite for one of the tokens {first} to "
            f"{first + len(position) - 1} of the text; its weights or its dtype are bad"
        )
    return logits


class _Changes:
    """How the engine changes GOOD's logits at each position of a text, and the tokens that may not be drawn there.

    Args:
        pair: the models.
        text: int64 [T].
        params: bans, biases and penalties are used.
        prompt_length: number of tokens before the continuation.
    """

    def __init__(self, pair: ModelPair, text: Tensor, params: SamplingParams, prompt_length: int) -> None:
        self._text, self._ngram_size, self._output_from = text, params.no_repeat_ngram_size, prompt_length
        self._stop = text.new_tensor(stop_token_ids(params, pair.eos_token_ids) if params.min_tokens else [])
        self._stop_from = prompt_length + params.min_tokens
        self._words = word_table(pair.bad_word_ids(params), text.device)
        self._bias = Bias.of(params, text.device)
        self._penalties = to_device(penalty_strengths([params]), text.device) if params.penalizes else None  # [3, 1]

    def banned(self, position: Tensor) -> Tensor:
        """Return the banned tokens at positions int64 [N]: int64 [N, B], -1 for no ban."""
        bans = [torch.where((position < self._stop_from)[:, None], self._stop, -1)]
        history = self._text.expand(len(position), -1)
        if self._ngram_size:
            bans.append(repeated_ngram_bans(history, position, self._ngram_size))
        if self._words is not None:
            bans.append(bad_word_bans(self._words, history, position, self._begin(position)))
        return torch.cat(bans, 1)

    def adjusted(self, good: Tensor, position: Tensor) -> Tensor:
        """Return GOOD's logits, float32 [N, V], with biases and penalties at positions int64 [N]."""
        penalties = None
        if self._penalties is not None:
            history, strength = self._text.expand(len(position), -1), self._penalties.expand(-1, len(position))
            penalties = Penalties(strength, history, position, self._begin(position))
        return Adjustment(self._bias, penalties).apply(good)

    def _begin(self, position: Tensor) -> Tensor:
        return torch.full_like(position, self._output_from)
