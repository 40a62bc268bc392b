"""Sampling parameters that several test modules share."""

from typing import Any

from cdgen import SamplingParams


def free(**changes: Any) -> SamplingParams:
    """Return parameters that draw 12 tokens, whether or not end-of-text is among them."""
    return SamplingParams(**{"max_tokens": 12, "ignore_eos": True} | changes)
