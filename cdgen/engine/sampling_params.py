"""SamplingParams: everything that decides how tokens are drawn and when a continuation ends."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, fields
from itertools import pairwise
from typing import Any, Literal

from cdgen.errors import InputError
from cdgen.values import FLOAT32_MAX, INT32_MAX, INT64_MAX, integer, real, shown, switch
from cdgen.wording import counted

# The values that define each named method; other fields keep their defaults.
METHODS: dict[str, dict[str, Any]] = {
    "ancestral": {"alpha": 0.0, "contrast_strength": 0.0},
    "top_k": {"alpha": 0.0, "contrast_strength": 0.0, "top_k": 200},
    "top_p": {"alpha": 0.0, "contrast_strength": 0.0, "top_p": 0.95},
    "head": {"contrast_strength": 0.0},
    "contrastive": {},
    "contrastive_top_k": {"top_k": 200},
    "contrastive_top_p": {"top_p": 0.95},
    "contrastive_tail": {"outside_head": "shifted_good"},
}

_LOWEST_TEMPERATURE = 1e-5  # the ops take lower ones for 0, as vLLM does
_MOST_CONTINUATIONS = 1_000_000  # per prompt
_MOST_LISTED = 1000  # top_logprobs
_INTEGERS = {  # field: lowest and highest value
    "n": (1, _MOST_CONTINUATIONS),
    "top_k": (-1, INT32_MAX),
    "no_repeat_ngram_size": (0, INT32_MAX),
    "seed": (0, INT64_MAX),
    "min_tokens": (0, INT32_MAX),
    "top_logprobs": (0, _MOST_LISTED),
}
_LISTS = ("logit_bias", "bad_words", "stop", "stop_token_ids")
_REALS = {
    "alpha": (0.0, 1.0),
    "contrast_strength": (-FLOAT32_MAX, FLOAT32_MAX),
    "good_weight": (0.0, FLOAT32_MAX),
    "temperature": (0.0, FLOAT32_MAX),
    "top_p": (0.0, 1.0),
    "repetition_penalty": (0.0, FLOAT32_MAX),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


class _Stored(float):
    """A default, or a number that `dataclasses.replace` copied. The caller did not give it, so `min_p` replaces it."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and when a continuation ends. Immutable and hashable; names as in vLLM.

    With p = softmax(z / temperature) of each model, the next token is drawn from

        score(x)   = good_weight * log p_GOOD(x) - contrast_strength * log p_BAD(x)    for x in the candidates
        candidates = { x : p_GOOD(x) >= alpha * max p_GOOD }

    Args:
        n: continuations per prompt, at most a million.
        max_tokens: greatest number of new tokens per continuation; None: as many as the models have positions for.
        alpha: threshold of the candidates (Li et al. 2023); 0 keeps all tokens. Without BAD this is min-p sampling.
        contrast_strength: weight of BAD's log-probability, which is subtracted; with 0, BAD is not run.
        good_weight: weight of GOOD's log-probability; 1 + contrast_strength is O'Brien & Lewis 2023.
        temperature: divides both models' logits; 0 takes the best score, and so does anything below 1e-5.
        top_k: keep the k best scores; 0 or -1 keeps all.
        top_p: of these, keep the nucleus with this probability mass; 1 keeps all.
        outside_head: score of the tokens outside the candidates: "mask" (they cannot be drawn), "shifted_good", or a
            number.
        no_repeat_ngram_size: no n-gram of this size occurs twice in prompt and continuation; 0 allows all.
        repetition_penalty: for each token that occurs in the prompt or the continuation, GOOD's logit is divided by
            this number if it is positive, and multiplied by it otherwise; greater than 0, and 1 changes nothing.
        presence_penalty: number to subtract from GOOD's logit of each token that the continuation contains; -2 to 2.
        frequency_penalty: number to subtract from GOOD's logit of a token for each time that the continuation contains
            it; -2 to 2.
        logit_bias: numbers to add to GOOD's logits before the penalties, as {token id: number}. The field holds a
            sorted tuple of pairs.
        bad_words: strings that the continuation must not contain. Each is encoded with and without a space before it,
            and the last token of either sequence is banned if it would complete the sequence.
        seed: key of the random numbers, 0 to 2**63 - 1. The same seed gives the same continuations in any batch. None
            chooses a seed at random, which the field then holds.
        stop: strings that end a continuation; its text is cut before them.
        stop_token_ids: tokens that end a continuation, in addition to the models' end-of-text tokens.
        ignore_eos: continue after end-of-text tokens, as for the corpora of arXiv 2510.08245.
        min_tokens: suppress end-of-text, stop tokens and stop strings until this many tokens have been generated.
        logprobs: return the log-probabilities of every token drawn. A number n also returns the n tokens that were most
            likely to be drawn at each step: `logprobs=n` is `logprobs=True, top_logprobs=n`.
        top_logprobs: see `logprobs`; at most 1000.
        skip_special_tokens: leave special tokens out of the text.
        min_p: vLLM's name for `alpha`. `SamplingParams(min_p=x)` is min-p sampling, `SamplingParams(alpha=x,
            contrast_strength=0)`, unless `contrast_strength` is given too. `alpha` holds the value: there is no field
            `min_p`, but `dataclasses.replace(params, min_p=x)` works.

    The penalties, `logit_bias` and bans change GOOD's logits before the candidates are selected, in vLLM's order: bans,
    `logit_bias`, `repetition_penalty`, `frequency_penalty`, `presence_penalty`.

    Numbers may be Python's, numpy's or torch's. `logit_bias`, `bad_words`, `stop`, `stop_token_ids` and `logprobs` may
    be None, as in vLLM.

    Raises:
        InputError (a ValueError): a value is of another type or out of range, a number above 0 would be 0 in float32,
            or both `alpha` and `min_p` are given. The message names the field.
    """

    n: int = 1
    max_tokens: int | None = 256
    alpha: float = _Stored(0.1)
    contrast_strength: float = _Stored(1.0)
    good_weight: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    outside_head: Literal["mask", "shifted_good"] | float = "mask"
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: bool | int = False
    top_logprobs: int = 0
    skip_special_tokens: bool = True
    min_p: InitVar[float | None] = None

    def __post_init__(self, min_p: float | None) -> None:
        if min_p is not None:
            self._set_min_p(min_p)
        self._replace_none()
        self._set_logprobs()
        for name, bounds in _INTEGERS.items():
            self._set(name, integer(name, getattr(self, name), *bounds))
        self._set("top_k", max(0, self.top_k))
        for name, limits in _REALS.items():
            kind = _Stored if name == "alpha" or isinstance(getattr(self, name), _Stored) else float
            self._set(name, kind(real(name, getattr(self, name), *limits)))
        if self.temperature < _LOWEST_TEMPERATURE:
            self._set("temperature", 0.0)
        if self.top_p == 0:
            raise InputError("top_p = 0: must be greater than 0; use top_k=1 to keep one token")
        if self.max_tokens is not None:
            self._set("max_tokens", integer("max_tokens", self.max_tokens, 1, INT32_MAX))
            if self.min_tokens > self.max_tokens:
                raise InputError(f"min_tokens = {self.min_tokens}: must not exceed max_tokens = {self.max_tokens}")
        if not isinstance(self.outside_head, str):
            self._set("outside_head", real("outside_head", self.outside_head))
        elif self.outside_head not in ("mask", "shifted_good"):
            raise InputError(f"outside_head = {shown(self.outside_head)}: use 'mask', 'shifted_good' or a number")
        if self.repetition_penalty == 0:
            raise InputError("repetition_penalty = 0: must be greater than 0; 1 changes nothing")
        self._set("stop", _strings("stop", self.stop))
        self._set("bad_words", _strings("bad_words", self.bad_words))
        if not all(map(str.strip, self.bad_words)):
            why = "a word must not consist of white space; ban a token with logit_bias"
            raise InputError(f"bad_words = {shown(self.bad_words)}: {why}")
        self._set("logit_bias", _bias("logit_bias", self.logit_bias))
        ids = _items("stop_token_ids", self.stop_token_ids)
        self._set("stop_token_ids", tuple(integer("stop_token_ids", token, 0, INT32_MAX) for token in ids))
        for name in ("ignore_eos", "skip_special_tokens"):
            self._set(name, switch(name, getattr(self, name)))

    def _set(self, name: str, value: Any) -> None:
        """Set a field, which only the constructor may do."""
        object.__setattr__(self, name, value)

    def _set_min_p(self, min_p: float) -> None:
        if not isinstance(self.alpha, _Stored):
            alpha = shown(self.alpha)
            raise InputError(f"min_p = {shown(min_p)}: alpha = {alpha} sets the same threshold; give only one of them")
        self._set("alpha", real("min_p", min_p, 0, 1))
        if isinstance(self.contrast_strength, _Stored):
            self._set("contrast_strength", _Stored(0.0))

    def _set_logprobs(self) -> None:
        """Store a number of tokens, given as `logprobs`, in `top_logprobs`."""
        try:
            self._set("logprobs", switch("logprobs", self.logprobs))
        except InputError:
            self._set("top_logprobs", integer("logprobs", self.logprobs, 0, _MOST_LISTED))
            self._set("logprobs", True)
        if self.top_logprobs and not self.logprobs:
            raise InputError(f"top_logprobs = {shown(self.top_logprobs)}: needs logprobs=True")

    def _replace_none(self) -> None:
        """Replace None, which vLLM accepts for these fields."""
        if self.seed is None:
            self._set("seed", secrets.randbits(63))
        for name, nothing in (("logprobs", False), *((name, ()) for name in _LISTS)):
            if getattr(self, name) is None:
                self._set(name, nothing)

    def check_distinct(self) -> None:
        """Check that the continuations of a prompt can differ. Not needed if BAD is noisy: then they differ anyway.

        Raises:
            InputError: `n` is more than 1, but only one token can be drawn at each step.
        """
        single = (
            "temperature = 0" if self.temperature == 0 else
            "top_k = 1" if self.top_k == 1 else
            "alpha = 1" if self.alpha == 1 and self.outside_head == "mask" else ""
        )  # fmt: skip
        if self.n > 1 and single:
            raise InputError(f"n = {self.n}: with {single} all continuations of a prompt are equal; use n = 1")

    @property
    def penalizes(self) -> bool:
        """Whether a penalty changes logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def lists_candidates(self) -> bool:
        """Whether there is a contrast, and a list of GOOD's candidates is enough to draw from it.

        With alpha = 0 every token is a candidate.
        """
        only_candidates = self.alpha > 0 and self.outside_head == "mask" and not self.logprobs
        return self.contrast_strength != 0 and only_candidates

    @property
    def cuts(self) -> bool:
        """Whether top_k or top_p may leave tokens out."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def method(self) -> str:
        """The method that these values define, one of :data:`METHODS`; top_k takes precedence over top_p."""
        cut = "top_k" if self.top_k else "top_p" if self.top_p < 1 else ""
        if self.contrast_strength == 0:
            return "head" if self.alpha else cut or "ancestral"
        if self.outside_head == "shifted_good":
            return "contrastive_tail"
        return f"contrastive_{cut}" if cut else "contrastive"

    @classmethod
    def for_method(cls, name: str, **overrides: Any) -> "SamplingParams":
        """Return the values of a named method, changed by `overrides`.

        Args:
            name: one of :data:`METHODS`.
            overrides: arguments of the constructor.
        Raises:
            InputError: the method is unknown, or the overrides turn it into another one.
        """
        if name not in METHODS:
            raise InputError(f"method = {name!r}: use one of {', '.join(METHODS)}")
        values = {**METHODS[name], **overrides}
        if "min_p" in overrides and "alpha" not in overrides:  # min_p replaces the method's own alpha
            values.pop("alpha", None)
        params = cls(**values)
        if params.method != name:
            changed = ", ".join(f"{key}={shown(value)}" for key, value in overrides.items() if key in _DECIDING)
            raise InputError(f"method = {name!r}: with {changed} this is {params.method!r}; drop one of the two")
        return params


_DECIDING = ("alpha", "contrast_strength", "top_k", "top_p", "outside_head", "min_p")
FIELDS = tuple(field.name for field in fields(SamplingParams))


def check_params(params: Any, name: str = "sampling_params") -> None:
    """Raise InputError if something else than SamplingParams is passed, such as a dict."""
    if not isinstance(params, SamplingParams):
        raise InputError(f"{name}: is of type {type(params).__name__}; use SamplingParams(...)")


def params_of_each(params: Any, count: int) -> list[SamplingParams]:
    """Return the parameters of each of `count` prompts, given those of all or a list.

    Raises:
        InputError: the list has another length, or an entry is not a SamplingParams.
    """
    if isinstance(params, (list, tuple)):
        if len(params) != count:
            raise InputError(
                f"sampling_params: has {counted(len(params), 'entry', 'entries')} for {counted(count, 'prompt')}; "
                "give one SamplingParams for all prompts, or one for each"
            )
        for index, own in enumerate(params):
            check_params(own, f"sampling_params[{index}]")
        return list(params)
    check_params(params)
    return [params] * count


def _items(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputError(f"{name} = {shown(values)}: must be a list")
    return tuple(values)


def _strings(name: str, values: Any) -> tuple[str, ...]:
    """Return one string or several as a tuple."""
    strings = _items(name, (values,) if isinstance(values, str) else values)
    if not all(isinstance(text, str) and text for text in strings):
        raise InputError(f"{name} = {shown(strings)}: use strings that are not empty")
    if any("\ud800" <= character <= "\udfff" for text in strings for character in text):
        raise InputError(f"{name} = {shown(strings)}: has half of a surrogate pair, which no text contains")
    return strings


def _bias(name: str, values: Any) -> tuple[tuple[int, float], ...]:
    """Return {token id: number}, or pairs of them, as pairs in ascending order. JSON has ids as strings."""
    try:
        given = values.items() if isinstance(values, Mapping) else values
        pairs = [(int(token) if isinstance(token, str) else token, number) for token, number in given]
    except (TypeError, ValueError):
        raise InputError(f"{name} = {shown(values)}: must be a dict of token ids and numbers") from None
    found = sorted((integer(name, token, 0, INT32_MAX), real(name, number)) for token, number in pairs)
    if twice := [token for (token, _), (after, _) in pairwise(found) if token == after]:
        raise InputError(f"{name} = {shown(values)}: token {twice[0]} occurs twice")
    return tuple(found)
