"""The decode loop: a batch of continuations in lockstep, both models on the same tokens.

Every prompt is computed once and forked to its continuations; each step then runs both models on one token a row.
"""

import hashlib
from dataclasses import dataclass

import torch

from cdgen.errors import InputError
from cdgen.models import LanguageModel, private_noise, seed_noise
from cdgen.ngrams import repeated_ngram_bans
from cdgen.outputs import TokenLogprobs
from cdgen.text import StopStrings, decode_after
from cdgen_kernels.ops import make_rows, sample


@dataclass
class Pair:
    """GOOD, BAD (or None) and what they share."""

    good: LanguageModel
    bad: LanguageModel | None
    tokenizer: object | None
    vocab_size: int  # token ids in use; the padding of wider output layers lies behind
    eos_token_ids: tuple[int, ...]


@dataclass
class Continuation:
    """One drawn text; fields as of :class:`cdgen.outputs.CompletionOutput`, `text` None without a tokenizer."""

    token_ids: list[int]
    text: str | None
    finish_reason: str
    logprobs: list[TokenLogprobs] | None


def noise_seed(seed, sequence):
    """Seed of torch's generator for a noisy BAD, of the batch whose first text is `sequence`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {sequence}".encode()).digest()[:8], "little") >> 1


def decode_batch(pair, prompts, owner, sequence, params, on_tokens=None):
    """Draw one continuation for each row.

    Args:
        pair: :class:`Pair`. params: :class:`~cdgen.params.SamplingParams`; `n` has done its work in `owner`.
        prompts: P lists of token ids, none empty.
        owner: B indices into `prompts`: the prompt that each row continues.
        sequence: B numbers, each text's own; with `params.seed` they decide the noise, whatever batch the text is in.
        on_tokens: called after each step with the number of tokens drawn for rows that are still running.
    Returns:
        list of B :class:`Continuation`.
    Raises:
        InputError: a row from which nothing can be drawn: NaN in the logits, or everything banned.
    """
    models = [pair.good, pair.bad] if params.contrast_strength else [pair.good]
    with torch.inference_mode(), private_noise(pair.good.device):
        if any(model.noisy for model in models):
            seed_noise(pair.good.device, noise_seed(params.seed, sequence[0]))
        batch = _Batch(pair, models, prompts, owner, sequence, params)
        while batch.running():
            batch.draw()
            if on_tokens is not None:
                on_tokens(int(batch.drawing.sum()))
            batch.end_finished()
            if batch.running():
                batch.advance()
        return batch.continuations()


class _Batch:
    """State of one batch. B rows, P prompts padded on the left to W tokens, L = W + max_tokens positions."""

    def __init__(self, pair, models, prompts, owner, sequence, params):
        self.pair, self.models, self.params = pair, models, params
        self.prompts, self.owner = prompts, owner
        device = pair.good.device
        ids, mask = _left_padded(prompts, device)  # [P, W]
        self.width = ids.shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        caches = [model.new_cache(self.width) for model in models]
        logits = [model.last_logits(ids, mask, positions, cache) for model, cache in zip(models, caches, strict=True)]

        rows = torch.tensor(owner, device=device)
        length = self.width + params.max_tokens
        self.caches = [cache.fork(rows, length) for cache in caches]
        self.logits = [x.index_select(0, rows) for x in logits]  # of each model, [B, V']
        self.mask = mask.new_ones(len(owner), length)
        self.mask[:, : self.width] = mask[rows]
        self.history = ids.new_zeros(len(owner), length)  # [B, L]: prompts, then what was drawn
        self.history[:, : self.width] = ids[rows]
        self.text_start = self.width - mask.sum(1)[rows]  # [B]
        self.rows = make_rows(
            len(owner),
            alpha=params.alpha,
            good_weight=params.good_weight,
            contrast_strength=params.contrast_strength,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            seed=params.seed,
            sequence=sequence,
            position=self.width - self.text_start,
            device=device,
        )
        stop_ids = set(params.stop_token_ids) | (set() if params.ignore_eos else set(pair.eos_token_ids))
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        self.stop_strings = [StopStrings(pair.tokenizer, prompts[p], params) for p in owner] if params.stop else None
        self.cut = [None] * len(owner)  # text before the stop string, where one ended the row
        self.step = 0
        self.drawing = mask.new_ones(len(owner), dtype=torch.bool)  # [B], rows that have not ended
        self.by_token = torch.zeros_like(self.drawing)  # rows that a stop token ended
        self.count = torch.zeros_like(self.text_start)  # [B], tokens drawn
        self.logprobs = torch.empty(len(owner), params.max_tokens, 3, device=device) if params.logprobs else None

    def running(self):
        return self.step < self.params.max_tokens and bool(self.drawing.any())

    def draw(self):
        """Sample one token a row from the logits at hand."""
        params, bad = self.params, self.logits[1] if len(self.logits) > 1 else None
        options = {"outside_head": params.outside_head, "banned": self._bans(), "logprobs": params.logprobs}
        try:
            drawn = sample(self.logits[0], bad, self.rows, vocab_size=self.pair.vocab_size, **options)
        except ValueError as error:
            raise InputError(f"nothing can be drawn after {self.step} new tokens: {error}") from error
        self.history[:, self.width + self.step] = drawn.token
        if params.logprobs:
            self.logprobs[:, self.step] = torch.stack(drawn[1:], 1)
        self.count += self.drawing

    def end_finished(self):
        """Stop the rows whose newest token ended them."""
        token = self.history[:, self.width + self.step]
        self.step += 1
        self.by_token |= self.drawing & torch.isin(token, self.stop_ids)
        self.drawing &= ~self.by_token
        if self.stop_strings is not None:
            for row in self.drawing.nonzero().flatten().tolist():
                text = self.stop_strings[row].append(int(token[row]))
                if text is not None and self.step >= self.params.min_tokens:
                    self.cut[row], self.drawing[row] = text, False

    def advance(self):
        """Run the models on the newest tokens."""
        at = self.width + self.step  # positions filled
        ids = self.history[:, at - 1 : at]
        positions = self.rows.position.unsqueeze(1).clone()  # [B, 1]: the newest token's place in its text
        self.logits = [
            model.last_logits(ids, self.mask[:, :at], positions, cache)
            for model, cache in zip(self.models, self.caches, strict=True)
        ]
        self.rows.position.add_(1)

    def _bans(self):
        bans = []
        if self.step < self.params.min_tokens and len(self.stop_ids):
            bans.append(self.stop_ids.expand(len(self.owner), -1))
        if self.params.no_repeat_ngram_size:
            history = self.history[:, : self.width + self.step]
            repeated = repeated_ngram_bans(history, self.text_start, self.params.no_repeat_ngram_size)
            bans.append(repeated.masked_fill(~self.drawing.unsqueeze(1), -1))  # a row that has ended cannot fail
        return torch.cat(bans, 1) if bans else None

    def continuations(self):
        """What was drawn, on the host."""
        tokens, count = self.history[:, self.width :].tolist(), self.count.tolist()
        by_token = self.by_token.tolist()
        logprobs = None if self.logprobs is None else self.logprobs.tolist()
        result = []
        for row, prompt in enumerate(self.owner):
            ids = tokens[row][: count[row]]
            shown = ids[:-1] if by_token[row] else ids
            text = self.cut[row]
            if text is None and self.pair.tokenizer is not None:
                text = decode_after(self.pair.tokenizer, self.prompts[prompt], shown, self.params.skip_special_tokens)
            reason = "stop" if by_token[row] or self.cut[row] is not None else "length"
            each = logprobs and [self._token_logprobs(x) for x in logprobs[row][: count[row]]]
            result.append(Continuation(ids, text, reason, each))
        return result

    def _token_logprobs(self, values):
        logprob, good, bad = values
        return TokenLogprobs(logprob, good, bad if len(self.models) > 1 else None)


def _left_padded(prompts, device):
    """(ids, mask), int64 [P, W], W the longest prompt; padding has id 0 and mask 0."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
