"""SamplingParams: everything that decides how tokens are drawn and when a continuation ends."""

import math
from dataclasses import InitVar, dataclass, fields
from typing import Any, Literal

from cdgen.errors import InputError

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

_NUMBERS: dict[str, tuple[type, float | None, float | None]] = {  # field: (type, lowest value, highest value)
    "n": (int, 1, None),
    "max_tokens": (int, 1, None),
    "alpha": (float, 0, 1),
    "contrast_strength": (float, None, None),
    "good_weight": (float, 0, None),
    "temperature": (float, 0, None),
    "top_k": (int, 0, None),
    "top_p": (float, 0, 1),
    "no_repeat_ngram_size": (int, 0, None),
    "seed": (int, 0, 2**63 - 1),
    "min_tokens": (int, 0, None),
}


class _Default(float):
    """A field's default, which `__post_init__` can distinguish from the same number passed by the caller."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and when a continuation ends. Immutable and hashable; names as in vLLM.

    With p = softmax(z / temperature) of each model, the next token is drawn from

        score(x)   = good_weight * log p_GOOD(x) - contrast_strength * log p_BAD(x)    for x in the candidates
        candidates = { x : p_GOOD(x) >= alpha * max p_GOOD }

    Args:
        n: continuations per prompt.
        max_tokens: greatest number of new tokens per continuation.
        alpha: threshold of the candidates (Li et al. 2023); 0 keeps all tokens. Without BAD this is min-p sampling.
        contrast_strength: weight of BAD's log-probability, which is subtracted; with 0, BAD is not run.
        good_weight: weight of GOOD's log-probability; 1 + contrast_strength is O'Brien & Lewis 2023.
        temperature: divides both models' logits; 0 takes the best score.
        top_k: keep the k best scores; 0 keeps all.
        top_p: of these, keep the nucleus with this probability mass; 1 keeps all.
        outside_head: score of the tokens outside the candidates: "mask" (they cannot be drawn), "shifted_good", or a
            number.
        no_repeat_ngram_size: no n-gram of this size occurs twice in prompt and continuation; 0 allows all.
        seed: key of the random numbers, 0 to 2**63 - 1. The same seed gives the same continuations in any batch.
        stop: strings that end a continuation; its text is cut before them.
        stop_token_ids: tokens that end a continuation, in addition to the models' end-of-text tokens.
        ignore_eos: continue after end-of-text tokens, as for the corpora of arXiv 2510.08245.
        min_tokens: suppress end-of-text, stop tokens and stop strings until this many tokens have been generated.
        logprobs: return the log-probabilities of every token drawn.
        skip_special_tokens: leave special tokens out of the text.
        min_p: vLLM's name for `alpha`. `SamplingParams(min_p=x)` is min-p sampling, `SamplingParams(alpha=x,
            contrast_strength=0)`, unless `contrast_strength` is given too. `alpha` holds the value: there is no field
            `min_p`.
    Raises:
        InputError (a ValueError): a value is out of range, or both `alpha` and `min_p` are given. The message names the
            field.
    """

    n: int = 1
    max_tokens: int = 256
    alpha: float = _Default(0.1)
    contrast_strength: float = _Default(1.0)
    good_weight: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    outside_head: Literal["mask", "shifted_good"] | float = "mask"
    no_repeat_ngram_size: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: bool = False
    skip_special_tokens: bool = True
    min_p: InitVar[float | None] = None

    def __post_init__(self, min_p: float | None) -> None:
        if min_p is not None:
            self._set_min_p(min_p)
        for name, (kind, low, high) in _NUMBERS.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), kind, low, high))
        if self.top_p == 0:
            raise InputError("top_p = 0: must be greater than 0; use top_k=1 to keep one token")
        if self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens = {self.min_tokens}: must not exceed max_tokens = {self.max_tokens}")
        if isinstance(self.outside_head, str):
            if self.outside_head not in ("mask", "shifted_good"):
                raise InputError(f"outside_head = {self.outside_head!r}: use 'mask', 'shifted_good' or a number")
        else:
            object.__setattr__(self, "outside_head", _number("outside_head", self.outside_head, float, None, None))
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop = {stop!r}: use strings that are not empty")
        object.__setattr__(self, "stop", stop)
        ids = tuple(_number("stop_token_ids", token, int, 0, None) for token in self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", ids)
        for name in ("ignore_eos", "logprobs", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} = {getattr(self, name)!r}: must be True or False")

    def _set_min_p(self, min_p: float) -> None:
        if not isinstance(self.alpha, _Default):
            raise InputError(
                f"min_p = {min_p!r}: alpha = {self.alpha!r} sets the same threshold; give only one of them"
            )
        object.__setattr__(self, "alpha", _number("min_p", min_p, float, 0, 1))
        if isinstance(self.contrast_strength, _Default):
            object.__setattr__(self, "contrast_strength", 0.0)

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
            changed = ", ".join(f"{key}={value!r}" for key, value in overrides.items() if key in _DECIDING)
            raise InputError(f"method = {name!r}: with {changed} this is {params.method!r}; drop one of the two")
        return params


_DECIDING = ("alpha", "contrast_strength", "top_k", "top_p", "outside_head", "min_p")
FIELDS = tuple(field.name for field in fields(SamplingParams))


def _number(name: str, value: Any, kind: type, low: float | None, high: float | None) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (kind is int and value != int(value)):
        raise InputError(f"{name} = {value!r}: must be a {'whole' if kind is int else 'finite'} number")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"{low} or more" if high is None else f"{low} to {high}"
        raise InputError(f"{name} = {value!r}: must be {bounds}")
    return kind(value)
