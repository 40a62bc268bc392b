"""The decode step as CUDA graphs: recorded for each of a few batch sizes, replayed without Python between kernels."""

from collections import defaultdict
from collections.abc import Callable

import torch

from cdgen_kernels.ops import SamplingTensors

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, SamplingTensors], torch.Tensor]

_spare_streams: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


def take_stream(device: torch.device) -> torch.cuda.Stream:
    """Take a stream that nothing else in this process uses until it is given back.

    Streams are reused because torch keeps a cuBLAS workspace of up to 32 MiB for each stream that it has seen.
    """
    spare = _spare_streams[device]
    return spare.pop(0) if spare else torch.cuda.Stream(device)  # oldest first, so that each keeps its role


def give_back_stream(stream: torch.cuda.Stream) -> None:
    """End the use of a stream from :func:`take_stream`."""
    _spare_streams[stream.device].append(stream)


class StepGraphs:
    """Repeats a decode step by replaying CUDA graphs of it, one graph for each batch size.

    All graphs of an instance are captured on one stream into one memory pool, and `close` destroys them together.
    Instances must not share a stream: torch 2.12 and later frees a stream's cuBLAS workspace when a graph that was
    captured on it is destroyed, while other graphs still write to that workspace.

    Args:
        largest: greatest number of rows.
        device: a device of type cuda, with its index.
    """

    def __init__(self, largest: int, device: torch.device) -> None:
        self._largest, self._device = largest, device
        self._stream, self._pool = take_stream(device), torch.cuda.graph_pool_handle()
        self._graphs: dict[int, _Graph] = {}

    def __call__(
        self,
        step: Step,
        ids: torch.Tensor,  # [A]
        position: torch.Tensor,  # [A]
        cache_row: torch.Tensor,  # [A]
        sampling: SamplingTensors,
        count: int,
    ) -> torch.Tensor:
        """Tokens int64 [count, A] of `count` steps.

        Args:
            step: function (ids, position int64 [A], row int32 [A], rows) -> int64 [A], the tokens drawn, on device
                tensors alone. A row below 0 is unused. Every call must pass the same function.
            ids, position, row, rows: arguments of the first step.
        """
        size = min(self._largest, 1 << (len(ids) - 1).bit_length())  # powers of two: few graphs, and at most half idle
        with torch.cuda.device(self._device):
            if size not in self._graphs:
                self._graphs[size] = _Graph(step, size, sampling, self._stream, self._pool)
            return self._graphs[size](ids, position, cache_row, sampling, count)

    def close(self) -> None:
        """Destroy all graphs and free their memory; nothing may be called afterwards."""
        try:
            if self._graphs:
                torch.cuda.synchronize(self._device)  # replays may still be running after an error
            for graph in self._graphs.values():
                graph.graph.reset()
        finally:
            self._graphs.clear()
            give_back_stream(self._stream)


class _Graph:
    """The graph of one batch size. It does not refer to the step, because the step's owner holds this graph."""

    def __init__(
        self, step: Step, size: int, sampling: SamplingTensors, stream: torch.cuda.Stream, pool: tuple[int, int]
    ) -> None:
        device = sampling.margin.device
        self.ids, self.position = torch.zeros(2, size, dtype=torch.long, device=device).unbind()
        self.cache_row = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.rows = SamplingTensors(*(x[:1].repeat(size) for x in sampling))
        self.graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # a capture can neither compile kernels nor initialise libraries
                self._advance(step)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph, pool=pool, stream=stream):
            self.token = self._advance(step)

    def _advance(self, step: Step) -> torch.Tensor:
        """A step, and what the next one needs; returns the tokens drawn, int64 [size]."""
        token = step(self.ids, self.position, self.cache_row, self.rows)
        self.ids.copy_(token.clamp(min=0))  # a fault is no token to read
        self.position.add_(1)
        return token

    def __call__(
        self, ids: torch.Tensor, position: torch.Tensor, cache_row: torch.Tensor, sampling: SamplingTensors, count: int
    ) -> torch.Tensor:
        live = len(ids)
        self.cache_row.fill_(-1)
        self.position.zero_()  # unused rows advance too, and would leave their tables
        for own, given in (
            (self.ids, ids),
            (self.position, position),
            (self.cache_row, cache_row),
            *zip(self.rows, sampling, strict=True),
        ):
            own[:live] = given
        drawn = []
        for _ in range(count):
            self.graph.replay()
            drawn.append(self.token[:live].clone())
        return torch.stack(drawn)
