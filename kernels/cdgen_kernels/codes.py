"""Codes that the ops pass as integers: faults of a row, and the score of tokens outside the candidates."""

NAN_GOOD, NOTHING_POSSIBLE, NAN_BAD, HEAD_OVERFLOW = -1, -2, -3, -4
FAULTS = {
    NAN_GOOD: "GOOD's logits hold NaN",
    NOTHING_POSSIBLE: "GOOD gives every token that is not banned the logit -inf, so nothing can be sampled",
    NAN_BAD: "BAD's logits hold NaN, or nothing but -inf where their normaliser is needed",
    HEAD_OVERFLOW: "the head is longer than the candidate list; raise its capacity, or call sample() on the logits",
}

MASK, CONSTANT, SHIFTED_GOOD = 0, 1, 2  # what tokens outside the head score: never, a constant, GOOD shifted down
