"""The decode loop with continuous batching: a waiting sequence replaces each one that finishes.

The loop knows nothing about caches and models; see :class:`~cdgen.engine.backend.Backend`.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch

from cdgen.engine.backend import Backend, Start
from cdgen.engine.bans import Bans
from cdgen.engine.batch_sampling import BatchSampling
from cdgen.engine.outputs import CompletionOutput, TokenLogprobs
from cdgen.engine.requests import ModelPair, Request, RunningBatch, RunningSequence
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.stopping import StopConditions
from cdgen.hardware import tf32_products
from cdgen.rng import private_noise
from cdgen_kernels import Samples
from cdgen_kernels.codes import FAULTS


class Engine:
    """Decodes every sequence of the requests.

    Args:
        pair: the models; the backend runs them.
        backend: closed at the end of :meth:`run`.
        requests: see :func:`~cdgen.engine.requests.make_requests`.
        params: the same for all sequences. `n` is not used: the requests list their sequences.
        on_tokens: called after each step with the number of tokens drawn.
        on_finished: called with the place and the output of each sequence that finishes.
    Attributes:
        batch: the running sequences; None before the first one starts.
        results: outputs of the finished sequences by their places.
    """

    def __init__(
        self,
        pair: ModelPair,
        backend: Backend,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: Callable[[int], None] | None = None,
        on_finished: Callable[[int, CompletionOutput], None] | None = None,
    ) -> None:
        self.backend, self.params, self.device = backend, params, pair.good.device
        self._pair = pair
        self.batch: RunningBatch | None = None
        self.results: dict[int, CompletionOutput] = {}
        self._waiting = deque(requests)
        self._on_tokens, self._on_finished = on_tokens or _ignore, on_finished or _ignore
        max_length = pair.longest_sequence(params, requests)
        self._stop = StopConditions(pair.tokenizer, params, pair.eos_token_ids)
        self._bans = Bans(params, self._stop.token_ids, max_length, self.device)
        self._sampling = BatchSampling(params, self.device)
        self._needs_host = bool(params.logprobs or params.min_tokens or params.no_repeat_ngram_size)

    def run(self) -> list[CompletionOutput]:
        """Decode all sequences; return their outputs by place.

        A sequence for which nothing can be drawn, because its logits hold NaN or all tokens are banned, finishes with
        the reason "error", and the others continue.
        """
        try:
            with torch.inference_mode(), private_noise(self.device), tf32_products(self.device):
                self.refill()
                while self.batch:
                    self.step()
                    self.refill()
        finally:  # closed explicitly, since a traceback that is kept would keep the cache alive
            self.backend.close()
        return [self.results[place] for place in range(len(self.results))]

    def step(self) -> None:
        """Draw the next token of every running sequence, or the next few."""
        batch = self.batch
        assert batch is not None
        left = min(sequence.max_tokens - len(sequence.token_ids) for sequence in batch.sequences)
        if not self._needs_host and self.backend.sync_every > 1:
            count = min(self.backend.sync_every, left)
            drawn = self.backend.steps(batch, self._sampling.tensors(batch), count).tolist()
            valid = next((step for step, tokens in enumerate(drawn) if min(tokens) < 0), count)
            batch.position = batch.position + valid
            if valid:  # the steps from the first fault on are drawn again, with a sync after each
                batch.ids = torch.tensor(drawn[valid - 1], device=self.device)
                self.batch = self._accept(batch, drawn[:valid])
                return
        self.batch = self._draw(batch, self.backend.step(batch))

    def refill(self) -> None:
        """Start waiting sequences if there is room, and draw their first tokens."""
        while self._waiting and (starts := self._admitted()):
            started = self.backend.start(starts)
            batch = self._draw(self._new_batch(starts, started.cache_rows), started.outputs)
            self.batch = batch if self.batch is None else self.batch.joined(batch)

    def _admitted(self) -> list[Start]:
        starts: list[Start] = []
        room = self.backend.max_num_seqs - (len(self.batch) if self.batch else 0)
        while self._waiting and room:
            request = self._waiting[0]
            count = self.backend.admit(request, min(room, len(request.waiting)))
            if not count:
                break
            starts.append(Start(request, count))
            room -= count
            if count < len(request.waiting):
                break
            self._waiting.popleft()
        return starts

    def _new_batch(self, starts: list[Start], cache_rows: list[list[int]]) -> RunningBatch:
        """Return the batch of the sequences that start, before their first token."""
        sequences, numbers = [], []
        for (request, _), rows in zip(starts, cache_rows, strict=True):
            for cache_row in rows:
                place, continuation = request.waiting.popleft()
                stop_strings = self._stop.stop_strings(request.token_ids)
                most = self._pair.max_new_tokens(self.params, len(request.token_ids))
                sequences.append(RunningSequence(place, continuation, request.token_ids, most, cache_row, stop_strings))
                numbers.append(request.sequence_number(continuation))
        prompts = [sequence.prompt_token_ids for sequence in sequences]
        last = [len(prompt) - 1 for prompt in prompts]
        position, sequence = torch.tensor([last, numbers], device=self.device).unbind()
        return RunningBatch(
            sequences,
            torch.tensor([each.cache_row for each in sequences], dtype=torch.int32, device=self.device),
            torch.tensor([prompt[-1] for prompt in prompts], device=self.device),
            position,
            sequence,
            self._bans.new_history(prompts),
        )

    def _draw(self, batch: RunningBatch, outputs: list[torch.Tensor]) -> RunningBatch:
        """Draw a token for each sequence from the models' outputs; return the batch of those that continue."""
        batch.position = batch.position + 1
        sampling, banned = self._sampling.tensors(batch), self._bans.next_tokens(batch)
        drawn = self.backend.sample(outputs, sampling, banned=banned, logprobs=self.params.logprobs)
        batch.append(drawn.token)
        return self._accept(batch, [drawn.token.tolist()], self._logprobs(drawn) if self.params.logprobs else None)

    def _accept(
        self, batch: RunningBatch, drawn: list[list[int]], logprobs: list[TokenLogprobs] | None = None
    ) -> RunningBatch:
        """Add the tokens of one or more steps, [steps][A], to the sequences; return the batch of those that continue.

        A fault code in place of a token ends its sequence. `logprobs`, [A], are those of a single step.
        """
        running = list(range(len(batch)))
        for tokens in drawn:
            self._on_tokens(sum(tokens[row] >= 0 for row in running))
            running = [
                row
                for row in running
                if not self._finishes(batch.sequences[row], tokens[row], logprobs[row] if logprobs else None)
            ]
        if len(running) == len(batch):
            return batch
        finished = set(range(len(batch))).difference(running)
        self.backend.release([batch.sequences[row].cache_row for row in sorted(finished)])
        for row in sorted(finished):
            place = batch.sequences[row].place
            self._on_finished(place, self.results[place])
        return batch.select(running)

    def _finishes(self, sequence: RunningSequence, token: int, logprobs: TokenLogprobs | None) -> bool:
        """Add a token to a sequence and keep its output if it finishes; return whether it does."""
        if token < 0:
            output: CompletionOutput | None = self._stop.fail(sequence, FAULTS[token])
        else:
            output = self._stop.append(sequence, token, logprobs)
        if output is not None:
            self.results[sequence.place] = output
        return output is not None

    def _logprobs(self, drawn: Samples) -> list[TokenLogprobs]:
        rows = torch.stack([x for x in drawn[1:] if x is not None], 1).tolist()
        contrast = self.params.contrast_strength
        return [TokenLogprobs(logprob, good, bad if contrast else None) for logprob, good, bad in rows]


def _ignore(*arguments: object) -> None:
    """Stand in for a callback that is not given."""
