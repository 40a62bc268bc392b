"""How many seeds a corpus takes, and how much disk."""

from collections.abc import Iterator
from math import ceil

from cdgen.engine.estimates import Job

CHUNK_WORDS = 100  # words of a seed in arXiv 2510.08245: held-out documents are cut into chunks of this size
# Bytes of Parquet files per token, the least and the greatest of measured corpora: contrastive and plain sampling in
# English (vocabulary of 49,152 tokens) and Chichewa (2,000 tokens), and English prose cut into texts of 420 tokens.
ROWS = (2.1, 3.2)  # per token of prompts and continuations: text, token ids and the short columns
DOCUMENTS = (1.1, 1.6)  # the texts again, split into documents
LOGPROBS = (9.2, 10.5)  # per token of continuations: three float32


def lines(job: Job) -> Iterator[str]:
    """Describe the seeds and files of a corpus whose continuations have their full length, in lines of text."""
    rows = ceil(job.tokens / job.max_tokens)
    seeds = ceil(rows / job.n)
    words = seeds * CHUNK_WORDS
    of_text = f"{_rounded(words / 1e9)} billion" if words >= 1e9 else f"{_rounded(words / 1e6)} million"
    yield f"seeds: {seeds:,} for {rows:,} texts; as chunks of {CHUNK_WORDS} words: {of_text} words"
    tokens, new = rows * (job.prompt_tokens + job.max_tokens), rows * job.max_tokens
    parts = (("", ROWS, tokens), ("documents +", DOCUMENTS, tokens), ("log-probabilities +", LOGPROBS, new))
    sizes = (f"{name}{_rounded(low * n / 1e9)} to {_rounded(high * n / 1e9)} GB" for name, (low, high), n in parts)
    yield f"disk: {', '.join(sizes)} (Parquet, as in measured corpora)"


def _rounded(number: float) -> str:
    """Return a number with three digits at least, and without an exponent if it is large."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
