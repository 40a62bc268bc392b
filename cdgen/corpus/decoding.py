"""Decode the missing documents of a corpus as one stream, and pass on each shard once its last document has finished.

Models with continuous batching never wait for the end of a shard: documents of the next shard replace those that
finish. A static batch holds documents of one shard only, since the noise of a dropout BAD depends on the batch.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import overload

from cdgen.corpus.background import Background
from cdgen.corpus.journal import Journal
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.requests import Prompts, batches
from cdgen.engine.sampling_params import SamplingParams
from cdgen.storage.progress import Progress


class Pairs(Sequence[tuple[int, int]]):
    """The (seed, continuation) pairs of rows of a corpus, computed when they are read.

    Args:
        rows: ranges of adjacent rows, in ascending order.
        n: continuations per seed.
    """

    def __init__(self, rows: Sequence[Sequence[int]], n: int) -> None:
        self._rows, self._n = rows, n
        self._starts = list(accumulate(map(len, rows), initial=0))  # index of the first row of each range

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, at: int) -> int:
        """Return the row of the pair with this index."""
        run = bisect_right(self._starts, at) - 1
        return self._rows[run][at - self._starts[run]]

    @overload
    def __getitem__(self, at: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, at: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        chosen = range(len(self))[at]
        if isinstance(chosen, range):
            return [self[each] for each in chosen]
        return divmod(self.row(chosen), self._n)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (divmod(row, self._n) for row in chain.from_iterable(self._rows))


class ShardDecoder:
    """Decodes the documents of shards.

    Args:
        lm: the models.
        prompts: the seeds.
        params: how continuations are sampled.
        shard_size: rows per shard; the last shard may have fewer.
        finished: documents of missing shards that are finished already, by shard and by row of the shard; the decoder
            changes this mapping.
        journal: receives each further document that finishes.
        progress: receives the documents that are finished and the tokens that are drawn.
        background: called for each shard whose documents have all finished, with its number and its outputs row by row.
    """

    def __init__(
        self,
        lm: ContrastiveLM,
        prompts: Prompts,
        params: SamplingParams,
        shard_size: int,
        finished: dict[int, dict[int, CompletionOutput]],
        journal: Journal,
        progress: Progress,
        background: Background[str],
    ) -> None:
        self._lm, self._prompts, self._params, self._shard_size = lm, prompts, params, shard_size
        self._journal, self._progress, self._background = journal, progress, background
        self._all_rows = range(len(prompts) * params.n)
        self._outputs = finished
        self._left: dict[int, int] = {}  # unfinished documents of each shard that has begun

    def run(self, done: Iterable[int]) -> None:
        """Decode all shards except for those that are done, in their order."""
        ready = [shard for shard, outputs in self._outputs.items() if len(outputs) == len(self._rows(shard))]
        for shard in sorted(ready):
            self._hand_on(shard)
        done = {*done, *ready}
        if self._lm.static_reason is None:
            self._decode(self._missing(done))
            return
        for shard in range(-(-len(self._all_rows) // self._shard_size)):
            if shard not in done:
                whole = batches(self._rows(shard), self._params.n, self._lm.max_num_seqs)
                # A batch that is not finished as a whole is decoded again.
                left = [batch for batch in whole if not all(self._is_finished(row) for row in batch)]
                self._left[shard] = sum(map(len, left))
                self._decode(left)

    def _rows(self, shard: int) -> range:
        return self._all_rows[shard * self._shard_size : (shard + 1) * self._shard_size]

    def _is_finished(self, row: int) -> bool:
        shard, place = divmod(row, self._shard_size)
        return place in self._outputs.get(shard, ())

    def _missing(self, done: Iterable[int]) -> list[range]:
        """Return the rows that are neither in these shards nor finished, as ranges of adjacent rows."""
        present = [self._rows(shard) for shard in done]
        for shard, outputs in self._outputs.items():
            present += [self._rows(shard)[place : place + 1] for place in outputs]
        present.sort(key=lambda rows: rows.start)
        starts, stops = [0, *(rows.stop for rows in present)], [*(rows.start for rows in present), len(self._all_rows)]
        return [rows for rows in map(range, starts, stops) if rows]

    def _decode(self, rows: Sequence[Sequence[int]]) -> None:
        pairs = Pairs(rows, self._params.n)
        self._lm.continue_sequences(
            self._prompts,
            pairs,
            self._params,
            on_finished=lambda at, output: self._on_finished(pairs.row(at), output),
            on_tokens=self._on_tokens,
        )

    def _on_tokens(self, count: int) -> None:
        self._progress.tokens(count)
        self._background.check()

    def _on_finished(self, row: int, output: CompletionOutput) -> None:
        """Store the output of a row, and pass on its shard if no other document of it is left."""
        shard, place = divmod(row, self._shard_size)
        outputs = self._outputs.setdefault(shard, {})
        left = self._left.get(shard, len(self._rows(shard)) - len(outputs)) - 1
        self._left[shard] = left
        if place not in outputs:
            self._journal.add(shard, place, output)
            self._progress.advance(1)
        outputs[place] = output
        if not left:
            self._hand_on(shard)

    def _hand_on(self, shard: int) -> None:
        self._left.pop(shard, None)
        outputs = self._outputs.pop(shard)
        self._background.call(shard, [outputs[place] for place in range(len(outputs))])
