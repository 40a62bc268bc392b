"""Codes that the ops pass as integers: faults of a row, and the score of tokens outside the candidates."""

NAN_GOOD, NOTHING_POSSIBLE, NAN_BAD, CANDIDATES_OVERFLOW = -1, -2, -3, -4
FAULTS = {
    NAN_GOOD: "GOOD's logits hold NaN",
    NOTHING_POSSIBLE: "GOOD gives every token that is not banned the logit -inf, so nothing can be sampled",
    NAN_BAD: "BAD's logits hold NaN, or nothing but -inf where their normaliser is needed",
    CANDIDATES_OVERFLOW: "there are more candidates than the list holds; raise its capacity or call contrastive_sample",
}

MASK, CONSTANT, SHIFTED_GOOD = 0, 1, 2  # what tokens outside the head score: never, a constant, GOOD shifted down
