"""The decode step as CUDA graphs: captured for a few batch sizes, replayed without Python between the kernels."""

from collections import defaultdict
from collections.abc import Callable

import torch

from cdgen_kernels import SamplingTensors

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, SamplingTensors], torch.Tensor]

_spare_streams: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)


def take_stream(device: torch.device) -> torch.cuda.Stream:
    """Take a stream that nothing else in this process uses until it is given back.

    Streams are reused because torch keeps a cuBLAS workspace of up to 32 MiB for each stream that it has seen.
    """
    spare = _spare_streams[device]
    return spare.pop(0) if spare else torch.cuda.Stream(device)  # the oldest, so that each keeps its role


def give_back_stream(stream: torch.cuda.Stream) -> None:
    """End the use of a stream from :func:`take_stream`."""
    _spare_streams[stream.device].append(stream)


class StepGraphs:
    """Repeats a decode step by replaying CUDA graphs of it, one graph for each batch size.

    All graphs of an instance are captured on one stream into one memory pool, and `close` destroys them together.
    Instances must not share a stream: torch 2.12 and later frees a stream's cuBLAS workspace when a graph that was
    captured on it is destroyed, while other graphs still write to that workspace.

    Args:
        largest: greatest batch size.
        device: a CUDA device, with its index.
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
        """Run `count` steps.

        Args:
            step: function (ids, position, cache_row, sampling) -> token, int64 [A]; it reads and writes device tensors
                only. Rows with a cache row below 0 are unused. Every call must pass the same function.
            ids: int64 [A], the tokens that the first step reads.
            position: int64 [A], their positions.
            cache_row: int32 [A], their rows of the page table.
            sampling: sampling parameters of the first step.
            count: number of steps.
        Returns:
            the tokens drawn, int64 [count, A].
        """
        size = min(self._largest, 1 << (len(ids) - 1).bit_length())  # powers of two: few graphs, at most half unused
        with torch.cuda.device(self._device):
            if size not in self._graphs:
                self._graphs[size] = _Graph(step, size, sampling, self._stream, self._pool)
            return self._graphs[size](ids, position, cache_row, sampling, count)

    def close(self) -> None:
        """Destroy all graphs and free their memory; the instance cannot be used afterwards."""
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
        self,
        step: Step,
        size: int,
        sampling: SamplingTensors,
        stream: torch.cuda.Stream,
        pool: "torch.cuda._POOL_HANDLE",
    ) -> None:
        device = sampling.margin.device
        self.ids, self.position = torch.zeros(2, size, dtype=torch.long, device=device).unbind()
        self.cache_row = torch.full((size,), -1, dtype=torch.int32, device=device)
        self.sampling = SamplingTensors(*(x[:1].repeat(size) for x in sampling))
        self.graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # a capture can neither compile kernels nor initialise libraries
                self._advance(step)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph, pool=pool, stream=stream):
            self.token = self._advance(step)

    def _advance(self, step: Step) -> torch.Tensor:
        """Run a step and prepare the next one; return the tokens drawn, int64 [size]."""
        token = step(self.ids, self.position, self.cache_row, self.sampling)
        self.ids.copy_(token.clamp(min=0))  # a fault code cannot be read as a token
        self.position.add_(1)
        return token

    def __call__(
        self, ids: torch.Tensor, position: torch.Tensor, cache_row: torch.Tensor, sampling: SamplingTensors, count: int
    ) -> torch.Tensor:
        live = len(ids)
        self.cache_row.fill_(-1)
        self.position.zero_()  # unused rows advance too, and would run past the ends of their tables
        for own, given in (
            (self.ids, ids),
            (self.position, position),
            (self.cache_row, cache_row),
            *zip(self.sampling, sampling, strict=True),
        ):
            own[:live] = given
        drawn = []
        for _ in range(count):
            self.graph.replay()
            drawn.append(self.token[:live].clone())
        return torch.stack(drawn)
