"""Log-probabilities under the contrastive distribution of a GOOD/BAD pair: the distribution that decoding draws from.

    score(x) = good_weight * log p_GOOD(x) - contrast_strength * log p_BAD(x)      for x in the candidates
    log p(x) = score(x) - log sum over y of exp score(y)

as :mod:`cdgen_kernels.reference.sampling` defines and computes it, in float64. The probability of tokens that are not
candidates depends on `outside_head`. With "mask" it is 0, so almost every text that the pair has not written has the
log-probability -inf, and texts cannot be compared. The method `contrastive_tail` ("shifted_good") gives every token a
positive probability: the other tokens keep their GOOD log-probabilities, shifted down so that the best of them equals
the worst candidate (Ulm, Du and Snæbjarnarson, arXiv 2510.08245).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdgen.engine.distribution import kept_scores
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError
from cdgen.evaluation.scoring.batching import cut, default_batch_tokens
from cdgen.evaluation.scoring.conventions import Tokens
from cdgen.evaluation.scoring.scorer import TokenScores
from cdgen.rng import private_noise, seed_noise

_PADDING = 256  # maximum number of padding tokens in a batch
_LOGITS = 2**26  # logits of each model in memory at once
_SCORES = 2**21  # scores in memory at once, in float64 and with several intermediate results


def contrastive_logprobs(good: Tensor, bad: Tensor, params: SamplingParams) -> Tensor:
    """Return the log-probabilities of the contrastive distribution.

    Args:
        good: GOOD's logits [N, V], before the temperature.
        bad: BAD's logits [N, V].
        params: parameters; see :func:`~cdgen.engine.distribution.kept_scores`.
    Returns:
        Log-probabilities float64 [N, V] (natural logarithm); -inf for tokens that cannot be drawn.
    """
    return kept_scores(good, bad, params).log_softmax(1)


class ContrastiveScorer:
    """Computes log-probabilities of tokens under the contrastive distribution of a pair; both models read all tokens.

    The noise of a dropout BAD is seeded per batch: scores depend on the noise, and are the same for the same sequences.

    Args:
        pair: the models.
        params: parameters of the distribution; see :func:`contrastive_logprobs`.
        batch_tokens: maximum number of tokens in one forward pass, padding included; default: 1024 on the CPU, 16384
            on a GPU, and fewer if the logits would take too much memory.
    Raises:
        InputError: there is no BAD, or the distribution is a single token.
    """

    def __init__(self, pair: ModelPair, params: SamplingParams, batch_tokens: int | None = None) -> None:
        if pair.bad is None:
            raise InputError("bad: the contrastive distribution needs a BAD")
        if params.temperature == 0:
            raise InputError("temperature = 0: gives one token all probability; use a temperature above 0")
        self._models, self._params, self._vocab_size = (pair.good, pair.bad), params, pair.vocab_size
        self._device = pair.good.device
        budget = batch_tokens or default_batch_tokens(self._device)
        self._budget = max(1, min(budget, _LOGITS // max(model.width for model in self._models)))

    def score(self, sequences: Sequence[Tokens], report: Callable[[int], None]) -> list[TokenScores]:
        """Return the scores of sequences.

        Args:
            sequences: token ids, and which of them are scored.
            report: called after each batch with the number of finished sequences.
        Returns:
            The scores of each sequence, in the same order.
        Raises:
            InputError: a token id is out of range.
        """
        largest = max((max(ids) for ids, _ in sequences), default=0)
        if largest >= self._vocab_size:
            raise InputError(f"token id {largest} is out of range; the models share {self._vocab_size} tokens")
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids), reverse=True)
        found: list[TokenScores | None] = [None] * len(sequences)
        with torch.inference_mode(), private_noise(self._device):
            done = 0
            batches = cut(order, lambda index: len(sequences[index].ids), self._budget, _PADDING)
            for number, chosen in enumerate(batches):
                seed_noise(self._device, number)
                scored = self._score_batch([sequences[index] for index in chosen])
                for index, scores in zip(chosen, scored, strict=True):
                    found[index] = scores
                done += len(chosen)
                report(done)
        return [scores for scores in found if scores is not None]

    def _score_batch(self, batch: list[Tokens]) -> list[TokenScores]:
        """Return the scores of sequences that are read together."""
        longest = max(len(ids) for ids, _ in batch)
        # No token attends to the padding, which is on the right. The last token is not read.
        table = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in batch], device=self._device)  # [B, L]
        rows = [at for at, (ids, first) in enumerate(batch) for _ in ids[first:]]
        columns = [place for ids, first in batch for place in range(first, len(ids))]
        row, column = torch.tensor([rows, columns], device=self._device)  # [N]
        target = table[row, column]  # [N]
        good, bad = (
            model.module(input_ids=table[:, :-1], use_cache=False).logits[..., : self._vocab_size]  # [B, L-1, V]
            for model in self._models
        )
        logprobs, greedy = [], []
        size = max(1, _SCORES // self._vocab_size)
        for place, before, chunk in zip(row.split(size), (column - 1).split(size), target.split(size), strict=True):
            each = contrastive_logprobs(good[place, before], bad[place, before], self._params)
            logprobs.append(each.gather(1, chunk[:, None])[:, 0])
            greedy.append(each.argmax(1) == chunk)
        counts = [len(ids) - first for ids, first in batch]
        parts = (torch.cat(values).cpu().split(counts) for values in (logprobs, greedy))
        return [TokenScores(one.numpy(), other.numpy()) for one, other in zip(*parts, strict=True)]
