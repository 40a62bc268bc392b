"""The tokens that the engine must draw, recomputed in float64 from whole texts, in plain Python.

Adjustments follow vLLM's documentation of its sampling parameters; nothing here uses the engine's own functions.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from cdgen import CompletionOutput, ContrastiveLM, RequestOutput, SamplingParams, sequence_number
from cdgen_kernels.reference.noise import gumbel, philox
from tests.helpers.recomputation import all_logits, distribution


def token_sequences(lm: ContrastiveLM, words: Sequence[str]) -> list[list[int]]:
    """Return the token sequences of bad words, with and without a space before them."""
    found = []
    for word in words:
        for text in (word.lstrip(), " " + word.lstrip()):
            found.append(lm.tokenizer.encode(text, add_special_tokens=False))
    return found


def adjusted_row(
    logits: torch.Tensor, prompt: list[int], drawn: list[int], params: SamplingParams, words: list[list[int]]
) -> torch.Tensor:
    """Return GOOD's logits float64 [V] for the token after `prompt` and `drawn`, with bans, bias and penalties."""
    row = logits.tolist()
    for word in words:
        if len(word) <= len(drawn) + 1 and drawn[len(drawn) - len(word) + 1 :] == word[:-1]:
            row[word[-1]] = -math.inf
    if len(drawn) < params.min_tokens:
        for token in {*params.stop_token_ids, *(() if params.ignore_eos else (1,))}:
            row[token] = -math.inf
    size, text = params.no_repeat_ngram_size, prompt + drawn
    for start in range(len(text) - size + 1 if size else 0):
        if text[start : start + size - 1] == text[len(text) - size + 1 :]:
            row[text[start + size - 1]] = -math.inf
    for token, bias in params.logit_bias:
        row[token] += bias
    for token in set(text):
        factor = params.repetition_penalty
        row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
    for token, count in Counter(drawn).items():
        row[token] -= count * params.frequency_penalty + params.presence_penalty
    return torch.tensor(row, dtype=torch.float64)


class Reference:
    """What a pair of models must draw.

    Args:
        lm: the pair, without noise in BAD.
    """

    def __init__(self, lm: ContrastiveLM) -> None:
        self._lm = lm

    def logprobs(self, prompt: list[int], drawn: list[int], params: SamplingParams) -> tuple[torch.Tensor, ...]:
        """Return log-probabilities for each drawn token, float64 [T, V]: of being drawn, GOOD's and BAD's."""
        lm, rows = self._lm, slice(len(prompt) - 1, None)
        good = all_logits(lm.pair.good.module, prompt + drawn)[rows]
        bad = good if lm.pair.bad is None else all_logits(lm.pair.bad.module, prompt + drawn)[rows]
        words = token_sequences(lm, params.bad_words)
        adjusted = torch.stack([adjusted_row(row, prompt, drawn[:at], params, words) for at, row in enumerate(good)])
        return distribution(adjusted, bad, params)[0], good.log_softmax(1), bad.log_softmax(1)

    def check(self, prompt: list[int], output: CompletionOutput, params: SamplingParams, occurrence: int = 0) -> None:
        """Check every token of a continuation, and its log-probabilities if it has them."""
        drawn = output.token_ids
        wanted, *both = self.logprobs(prompt, drawn, params)
        scores = wanted.clone()
        if params.temperature:
            numbers = [[params.seed, sequence_number(prompt, output.index, occurrence), len(prompt)]] * len(drawn)
            seed, sequence, position = torch.tensor(numbers).T
            scores += gumbel(philox(seed, sequence, position + torch.arange(len(drawn)), scores.shape[1]))
        assert scores.argmax(1).tolist() == drawn
        if params.logprobs:
            assert output.logprobs is not None
            for at, found in enumerate(output.logprobs):
                expected = [float(x[at, drawn[at]]) for x in (wanted, *both)][: 3 if params.contrast_strength else 2]
                assert torch.allclose(torch.tensor(found[: len(expected)]), torch.tensor(expected), atol=2e-4)

    def check_all(self, requests: Sequence[RequestOutput], params: Sequence[SamplingParams]) -> None:
        """Check the outputs of a call."""
        seen: Counter[tuple[int, ...]] = Counter()
        for request, own in zip(requests, params, strict=True):
            prompt = request.prompt_token_ids
            assert [output.index for output in request.outputs] == list(range(own.n))
            for output in request.outputs:
                assert output.finish_reason != "error"
                self.check(prompt, output, own, seen[tuple(prompt)])
            seen[tuple(prompt)] += 1
