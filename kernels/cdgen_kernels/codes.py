"""Integers that the ops exchange with their callers: fault codes, and scoring modes for tokens outside the candidates.

They are plain integers because torch ops and Triton constants accept nothing else.
"""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

# Faults: an op returns one in place of a row's token or count, so that no caller has to wait for the device.
NAN_GOOD: Final = -1
NOTHING_POSSIBLE: Final = -2
NAN_BAD: Final = -3
CANDIDATES_OVERFLOW: Final = -4
INVALID_PARAMETERS: Final = -5
INVALID_CANDIDATES: Final = -6
FAULTS: Final[Mapping[int, str]] = {
    NAN_GOOD: "GOOD's logits contain NaN",
    NOTHING_POSSIBLE: "GOOD gives every token that is not banned the logit -inf, so nothing can be sampled",
    NAN_BAD: "BAD's logits contain NaN, or only -inf although their normaliser is needed",
    CANDIDATES_OVERFLOW: "there are more candidates than the list holds; raise its capacity or call contrastive_sample",
    INVALID_PARAMETERS: "a sampling parameter is NaN or out of the range that make_sampling_tensors allows",
    INVALID_CANDIDATES: "the list of candidates is not one that select_candidates returns: ids must ascend within the "
    "vocabulary, and logits and maximum fit together",
}

# Modes of `outside_head`: the score of tokens that are not candidates.
MASK: Final = 0  # -inf: they cannot be drawn
CONSTANT: Final = 1  # the same constant for all of them
SHIFTED_GOOD: Final = 2  # GOOD's logit, shifted down so that the best of them equals the worst candidate

OutsideHead: TypeAlias = Literal["mask", "shifted_good"] | float
"""Public form of the modes: `"mask"`, `"shifted_good"`, or a number for a constant score."""
