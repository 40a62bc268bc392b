"""SamplingParams: everything that decides how a token is drawn and where a text ends."""

import math
from dataclasses import dataclass, fields

from cdgen.errors import InputError

# What each named method means in values; a field that is not named here keeps its default.
METHODS = {
    "ancestral": {"alpha": 0.0, "contrast_strength": 0.0},
    "top_k": {"alpha": 0.0, "contrast_strength": 0.0, "top_k": 200},
    "top_p": {"alpha": 0.0, "contrast_strength": 0.0, "top_p": 0.95},
    "head": {"contrast_strength": 0.0},
    "contrastive": {},
    "contrastive_top_k": {"top_k": 200},
    "contrastive_top_p": {"top_p": 0.95},
    "contrastive_tail": {"outside_head": "shifted_good"},
}

_NUMBERS = {  # field: (type, lowest, highest); the names of the two open ends are in _check
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


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens, and when to stop. Names as in vLLM where vLLM has one. Immutable and hashable.

    Args:
        n: continuations of each prompt.
        max_tokens: greatest number of new tokens of a continuation.
        alpha: the head keeps tokens of at least alpha times GOOD's greatest probability; 0 keeps all. (Li et al. 2023)
        contrast_strength: weight of BAD's log-probability, subtracted; 0 leaves BAD out altogether.
        good_weight: weight of GOOD's log-probability; 1 + contrast_strength is O'Brien & Lewis 2023.
        temperature: divides both models' logits; 0 takes the best score.
        top_k, top_p: keep the k best scores (0: all), then the nucleus of mass p.
        outside_head: score of the tokens outside the head: "mask" (impossible), "shifted_good", or a number.
        no_repeat_ngram_size: forbid every n-gram of this size from coming twice in prompt and continuation; 0: off.
        seed: key of the noise, 0 to 2**63 - 1. The same seed gives the same text, in whatever batch it stands.
        stop: strings that end a text; the text is cut before them.
        stop_token_ids: tokens that end a text, besides the models' own end of text.
        ignore_eos: go on past the end of text, as the corpora of arXiv 2510.08245 are made.
        min_tokens: no end of text before so many new tokens.
        logprobs: give (logprob, good, bad) for every token drawn.
        skip_special_tokens: leave special tokens out of texts.
    Raises:
        InputError (a ValueError): a value out of range; the message names the field.
    """

    n: int = 1
    max_tokens: int = 256
    alpha: float = 0.1
    contrast_strength: float = 1.0
    good_weight: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    outside_head: str | float = "mask"
    no_repeat_ngram_size: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self):
        for name, (kind, low, high) in _NUMBERS.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), kind, low, high))
        if self.top_p == 0:
            raise InputError("top_p = 0: must be more than 0; use top_k=1 to keep one token")
        if self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens = {self.min_tokens}: must not exceed max_tokens = {self.max_tokens}")
        if isinstance(self.outside_head, str):
            if self.outside_head not in ("mask", "shifted_good"):
                raise InputError(f"outside_head = {self.outside_head!r}: use 'mask', 'shifted_good' or a number")
        else:
            object.__setattr__(self, "outside_head", _number("outside_head", self.outside_head, float, None, None))
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop = {stop!r}: give strings that are not empty")
        object.__setattr__(self, "stop", stop)
        ids = tuple(_number("stop_token_ids", token, int, 0, None) for token in self.stop_token_ids)
        object.__setattr__(self, "stop_token_ids", ids)
        for name in ("ignore_eos", "logprobs", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} = {getattr(self, name)!r}: must be True or False")

    @property
    def method(self) -> str:
        """The name of what these values do: one of :data:`METHODS`. top_k is named before top_p where both are set."""
        cut = "top_k" if self.top_k else "top_p" if self.top_p < 1 else ""
        if self.contrast_strength == 0:
            return "head" if self.alpha else cut or "ancestral"
        if self.outside_head == "shifted_good":
            return "contrastive_tail"
        return f"contrastive_{cut}" if cut else "contrastive"

    @classmethod
    def for_method(cls, name, **overrides):
        """The values of a named method, with `overrides` on top.

        Raises:
            InputError: an unknown method, or an override that turns the method into another one.
        """
        if name not in METHODS:
            raise InputError(f"method = {name!r}: use one of {', '.join(METHODS)}")
        params = cls(**{**METHODS[name], **overrides})
        if params.method != name:
            changed = ", ".join(f"{key}={value!r}" for key, value in overrides.items() if key in _DECIDING)
            raise InputError(f"method = {name!r}: with {changed} this is {params.method!r}; drop one of the two")
        return params


_DECIDING = ("alpha", "contrast_strength", "top_k", "top_p", "outside_head")
FIELDS = tuple(field.name for field in fields(SamplingParams))


def _number(name, value, kind, low, high):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (kind is int and value != int(value)):
        raise InputError(f"{name} = {value!r}: must be a {'whole' if kind is int else 'finite'} number")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"{low} or more" if high is None else f"{low} to {high}"
        raise InputError(f"{name} = {value!r}: must be {bounds}")
    return kind(value)
