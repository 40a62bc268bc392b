"""What a task can ask of a model: log-probabilities of continuations and texts, and greedy continuations."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.evaluation.scoring.conventions import Convention, ConventionName, Query, Tokens, windows
from cdgen.evaluation.scoring.scorer import Scorer, TokenScores, joined_scores
from cdgen.models.language_model import LanguageModel
from cdgen.models.vocabulary import shared_vocab_size
from cdgen.values import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNSTATED = 2048  # positions of a model whose config states none, as in lm-evaluation-harness


class Score(NamedTuple):
    """The score of a continuation.

    Attributes:
        logprob: log-probability (natural logarithm), the sum over the scored tokens.
        tokens: number of scored tokens.
        greedy: whether every scored token is the most probable one at its position.
    """

    logprob: float
    tokens: int
    greedy: bool


class TextScores(NamedTuple):
    """The scored tokens of a text.

    Attributes:
        logprobs: float64 [T], log-probability of each token (natural logarithm).
        starts: int64 [T], index in the text of each token's first character.
        ends: int64 [T], index after each token's last character; 0 for an added special token.
    """

    logprobs: NDArray[np.float64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def _ignore(done: int, total: int) -> None:
    pass


class Evaluator:
    """Scores texts in one convention, and generates continuations, with a model and its tokenizer.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        convention: "lm-eval" or "babylm"; see :mod:`cdgen.evaluation.scoring.conventions`.
        batch_tokens: maximum number of tokens in one forward pass, padding included; default: by device.
        report: called with the number of finished queries or texts, and their total number.
    Raises:
        InputError: model and tokenizer do not fit, or the convention cannot be used with the tokenizer.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: "PreTrainedTokenizerBase",
        convention: ConventionName = "lm-eval",
        batch_tokens: int | None = None,
        report: Callable[[int, int], None] = _ignore,
    ) -> None:
        shared_vocab_size(model, None, tokenizer, None)
        self.model, self.tokenizer, self.convention = model, tokenizer, convention
        self._convention = Convention(convention, tokenizer)
        self._scorer = Scorer(model, batch_tokens)
        self.report = report

    @property
    def positions(self) -> int:
        """Maximum number of tokens that the model can read: from its config, else its tokenizer, else 2048."""
        stated = self.model.position_limit or self.tokenizer.model_max_length
        return int(stated) if stated < 2**31 else _UNSTATED

    def continuations(self, queries: Sequence[Query]) -> list[Score]:
        """Return the score of each continuation.

        A text with more tokens than the model has positions loses the start of its context. A continuation that does
        not fit even so is scored in windows, as texts are.

        Raises:
            InputError: a text cannot be encoded, a continuation has no scored token, or the model gives NaN.
        """
        scores = self._score(self._convention.queries(queries))
        for query, score in zip(queries, scores, strict=True):
            self._check(score, query.context + query.continuation)
        return [Score(float(each.logprobs.sum()), len(each.logprobs), bool(each.greedy.all())) for each in scores]

    def texts(self, texts: Sequence[str]) -> list[TextScores]:
        """Return the scores of the tokens of each text that the convention scores; a text may have none.

        A text with more tokens than the model has positions is scored in windows; see
        :func:`~cdgen.evaluation.scoring.conventions.windows`.

        Raises:
            InputError: a text cannot be encoded, the tokenizer gives no character offsets, or the model gives NaN.
        """
        encoded = self._convention.texts(texts)
        scores = self._score([text.tokens for text in encoded])
        found = []
        for text, (_, offsets), score in zip(texts, encoded, scores, strict=True):
            self._check(score, text)
            starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            found.append(TextScores(score.logprobs, starts, ends))
        return found

    def generate(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Return the greedy continuation of each prompt.

        A prompt that is too long loses its start, so that the prompt and `max_tokens` new tokens fit into the model.

        Args:
            prompts: any number of texts.
            max_tokens: greatest number of new tokens.
            stop: strings that end a continuation and are not part of it. An end-of-text token ends it, too.
        Raises:
            InputError: a prompt cannot be encoded, or `max_tokens` leaves no room for it.
        """
        params = SamplingParams(max_tokens=max_tokens, stop=tuple(stop), temperature=0, contrast_strength=0)
        longest = self._lm.longest_prompt(params)
        ids = [self._lm.prompt_ids(prompt, shown(prompt))[-(longest or 0) :] for prompt in prompts]
        if not ids:
            return []
        try:
            return [output.outputs[0].text or "" for output in self._lm.generate(ids, params)]
        finally:
            self._lm.close()  # other tasks do not need the cache

    @cached_property
    def _lm(self) -> ContrastiveLM:
        return ContrastiveLM(self.model.module, tokenizer=self.tokenizer)

    def _score(self, sequences: Sequence[Tokens]) -> list[TokenScores]:
        """Score sequences of any length."""
        divided = [list(windows(each, self.positions)) for each in sequences]
        parts = [part for each in divided for part in each]
        total = len(sequences)
        scores = iter(self._scorer.score(parts, lambda done: self.report(done * total // len(parts), total)))
        return [joined_scores([next(scores) for _ in each]) for each in divided]

    def _check(self, score: TokenScores, text: str) -> None:
        if np.isnan(score.logprobs).any():
            raise InputError(f"{self.model.name}: gives NaN as a log-probability in the text {shown(text)}")
