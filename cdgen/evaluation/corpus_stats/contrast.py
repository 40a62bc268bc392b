"""A sample of documents under GOOD and BAD: perplexity, contrast, entropy, and numbers of candidates."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cdgen.errors import InputError
from cdgen.evaluation.corpus_stats.diversity import mixed
from cdgen.evaluation.corpus_stats.words import Block
from cdgen.storage.progress import Progress, Silent
from cdgen.values import real

if TYPE_CHECKING:
    import torch

    from cdgen.engine.llm import ContrastiveLM
    from cdgen.models.language_model import LanguageModel

MOST_TOKENS = 512  # maximum number of tokens of a document that are scored
_CHARACTERS = 16 * MOST_TOKENS  # number of characters of a document that are kept
_ROWS = 64  # number of positions whose log-probabilities are in memory at once


@dataclass(frozen=True)
class Contrast:
    """Scores of a sample of documents under GOOD and BAD. Probabilities are over the tokens that the models share.

    Attributes:
        documents: number of documents that were scored.
        tokens: number of tokens that were scored.
        good_perplexity, bad_perplexity: exp of the mean negative log-probability of a token; the latter is None
            without BAD.
        mean_contrast: mean of log p_GOOD - log p_BAD of a token, in nats; None without BAD.
        good_entropy: mean entropy of GOOD's distribution, in nats.
        alpha: tokens x with p_GOOD(x) >= alpha * max p_GOOD are candidates.
        mean_candidates: mean number of candidates.
        candidates: histogram of the number of candidates: the share of positions in the bins 1, 2, 3 to 4, 5 to 8, ...,
            by the largest number in each bin.
    """

    documents: int
    tokens: int
    good_perplexity: float
    bad_perplexity: float | None
    mean_contrast: float | None
    good_entropy: float
    alpha: float
    mean_candidates: float
    candidates: dict[int, float]


class DocumentSample:
    """Draws documents at random from a stream: those with the smallest hashes of their indices.

    Args:
        size: number of documents.
        seed: random seed of the choice.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._drawn: list[tuple[int, int, str]] = []  # a heap of (minus hash, index, beginning of the text)
        self._latest = -1  # index of the last document that was seen

    def add(self, block: Block) -> None:
        """Draw from the documents that begin in a block. Those without a word at their beginning are left out."""
        hashes = mixed(np.array([part.document for part in block.parts]), self._seed).tolist()
        for (document, text), value in zip(block.parts, hashes, strict=True):
            is_new, self._latest = document != self._latest, document
            if not is_new or (len(self._drawn) == self._size and -value < self._drawn[0][0]):
                continue
            if beginning := text[:_CHARACTERS].strip():
                heapq.heappush(self._drawn, (-value, document, beginning))
                if len(self._drawn) > self._size:
                    heapq.heappop(self._drawn)

    def texts(self) -> list[str]:
        """Return the documents, each cut to its first 8,192 characters, in the order of the corpus."""
        return [text for _, text in sorted((document, text) for _, document, text in self._drawn)]


def contrast(
    lm: "ContrastiveLM", texts: Sequence[str], *, alpha: float = 0.1, seed: int = 0, progress: Progress | None = None
) -> Contrast:
    """Score the first 512 tokens of each text, after the start-of-text token if there is one.

    Without it, the first token is not scored. An end-of-text token is not added.

    Args:
        lm: GOOD, with or without BAD, and a tokenizer.
        texts: the documents.
        alpha: threshold of the candidates, above 0 and at most 1.
        seed: random seed of the noise of a dropout BAD.
        progress: receives the number of documents and tokens that have been scored.
    Raises:
        InputError: there is no tokenizer, no token can be scored, or a log-probability is not a finite number.
    """
    import torch

    from cdgen.models.tokenizers import encode
    from cdgen.rng import private_noise, seed_noise

    alpha, tokenizer = check_alpha(alpha), check_models(lm).tokenizer
    assert tokenizer is not None, "checked"
    good, bad, progress = lm.pair.good, lm.pair.bad, progress or Silent()
    start = [] if lm.bos_token_id is None else [lm.bos_token_id]
    limits = [model.position_limit for model in (good, bad) if model is not None]
    most = min([MOST_TOKENS, *(limit - len(start) for limit in limits if limit is not None)])
    counted = np.zeros(lm.pair.vocab_size + 1, np.int64)  # positions by their number of candidates
    sums = np.zeros(3)  # log p_GOOD, log p_BAD, entropy
    documents = 0
    progress.begin(len(texts), unit="documents", verb="to score")
    with torch.inference_mode(), private_noise(good.device):
        seed_noise(good.device, seed)
        for text in texts:
            ids = torch.tensor(start + encode(tokenizer, text, "a document")[:most], device=good.device)
            if len(ids) > 1:
                of_good, candidates, entropy = _scores(good, ids, lm.pair.vocab_size, alpha)
                of_bad = 0.0 if bad is None else _scores(bad, ids, lm.pair.vocab_size, alpha)[0]
                sums += of_good, of_bad, entropy
                counted += np.bincount(candidates, minlength=len(counted))
                progress.tokens(len(ids) - 1)
                documents += 1
            progress.advance(1)
    tokens = int(counted.sum())
    if not tokens:
        raise InputError("sample: none of its documents has a token to score; draw more documents")
    log_good, log_bad, entropy = (sums / tokens).tolist()
    return Contrast(
        documents=documents,
        tokens=tokens,
        good_perplexity=_exp(-log_good),
        bad_perplexity=None if bad is None else _exp(-log_bad),
        mean_contrast=None if bad is None else log_good - log_bad,
        good_entropy=entropy,
        alpha=alpha,
        mean_candidates=float(counted @ np.arange(len(counted))) / tokens,
        candidates=_histogram(counted),
    )


def check_alpha(alpha: float) -> float:
    """Return alpha; raise InputError if it is not above 0 and at most 1."""
    found = real("alpha", alpha, 0, 1)
    if not found:
        raise InputError("alpha = 0: must be more than 0")
    return found


def check_models(lm: "ContrastiveLM") -> "ContrastiveLM":
    """Return the models; raise InputError if they have no tokenizer."""
    if lm.tokenizer is None:
        raise InputError(f"{lm.pair.good.name}: has no tokenizer, which scoring texts needs; put one beside the model")
    return lm


def _scores(model: "LanguageModel", ids: "torch.Tensor", width: int, alpha: float) -> tuple[float, np.ndarray, float]:
    """Return three figures of the tokens after the first one.

    Args:
        model: the model.
        ids: int64 [T].
        width: number of tokens over which probabilities are normalised.
        alpha: threshold of the candidates.
    Returns:
        (sum of the log-probabilities, numbers of candidates int64 [T - 1], sum of the entropies).
    """
    logits = model.module(input_ids=ids[None], use_cache=False).logits[0, :-1]  # [T - 1, width or more]
    log_probs, entropies, candidates = 0.0, 0.0, []
    for rows, targets in zip(logits.split(_ROWS), ids[1:].split(_ROWS), strict=True):
        found = rows[:, :width].float().log_softmax(-1)  # [rows, width]
        log_probs += float(found.gather(1, targets[:, None]).double().sum())
        entropies -= float((found.exp() * found).nan_to_num().double().sum())
        least = found.max(1, keepdim=True).values + math.log(alpha)
        candidates.append((found >= least).sum(1).cpu().numpy())
    if not math.isfinite(log_probs):
        raise InputError(
            f"{model.name}: the log-probability of a document is {log_probs}; its weights or dtype are bad"
        )
    return log_probs, np.concatenate(candidates), entropies


def _histogram(counted: np.ndarray) -> dict[int, float]:
    """Return the share of positions in each bin of candidate counts, by the bin's largest count: 1, 2, 4, 8, ..."""
    tokens, found, low = int(counted.sum()), {}, 0
    while low < len(counted) - 1 and counted[low + 1 :].any():
        high = max(2 * low, 1)
        found[high] = int(counted[low + 1 : high + 1].sum()) / tokens
        low = high
    return found


def _exp(value: float) -> float:
    """Return exp(value); inf if it is too large for a float."""
    return math.exp(value) if value < 709 else math.inf
