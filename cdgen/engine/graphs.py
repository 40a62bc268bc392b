"""Steps as CUDA graphs: captured for a few sizes, replayed without Python between the kernels."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import torch

Step = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

_PATIENCE = 32  # calls of a size that run in a larger graph before the size gets a graph of its own

# Held while the device is synchronised, as torch does before a capture: that would break a capture in another thread.
# It can be taken again by the thread that holds it, since the garbage collector may destroy graphs at any time.
_CAPTURE = threading.RLock()
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


class GraphSizes:
    """Chooses the size of the graph in which a number of rows runs.

    The number of rows is rounded up to a multiple of an eighth of the power of two below it, so at most 11 % of the
    rows of the graph are unused. Capturing a graph takes longer than many steps, and there are eight sizes from each
    power of two to the next. A size therefore runs in a larger graph, if there is one of at most twice the size, until
    that has happened _PATIENCE times.

    Args:
        largest: greatest number of rows.
        eager_calls: number of calls without a suitable graph before the first capture.
    Attributes:
        captured: the sizes of the graphs.
    """

    def __init__(self, largest: int, eager_calls: int = 0) -> None:
        self._largest, self._eager_calls = largest, eager_calls
        self.captured: set[int] = set()
        self._calls: Counter[int] = Counter()  # by size
        self._without = 0  # calls for which there was no graph

    def choose(self, rows: int) -> int | None:
        """Return the size of the graph to use, which may have to be captured first; None to do without one."""
        step = 1 << max(0, rows.bit_length() - 4)
        size = min(self._largest, -(-rows // step) * step)
        self._calls[size] += 1
        larger = min((other for other in self.captured if size <= other <= 2 * size), default=None)
        if larger is not None and (larger == size or self._calls[size] <= _PATIENCE):
            return larger
        if larger is None and self._without < self._eager_calls:
            self._without += 1
            return None
        self.captured.add(size)
        return size


class StepGraphs:
    """Repeats steps by replaying CUDA graphs of them.

    There may be several kinds of steps, each with a graph for every size that its :class:`GraphSizes` chooses.

    All graphs of an instance are captured on one stream into one memory pool, and `close` destroys them together.
    Instances must not share a stream: torch 2.12 and later frees a stream's cuBLAS workspace when a graph that was
    captured on it is destroyed, while other graphs still write to that workspace.

    Args:
        sizes: for each kind of step, what chooses the graph of a step.
        unused: the inputs of an unused row, as many numbers as a step has inputs.
        device: a CUDA device, with its index.
    """

    def __init__(self, sizes: Sequence[GraphSizes], unused: Sequence[int], device: torch.device) -> None:
        self._sizes, self._device = sizes, device
        self._unused = torch.tensor(unused).unsqueeze(1)  # [F, 1]
        self._stream, self._pool = take_stream(device), torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, int], _Graph] = {}  # by kind and size

    def __call__(
        self, step: Step, inputs: torch.Tensor, count: int = 1, kind: int = 0
    ) -> list[tuple[torch.Tensor, ...]]:
        """Run `count` steps.

        Args:
            step: function from inputs, int64 [F, A] on the device, to outputs [A, ...]; it reads and writes device
                tensors only. Every call for a kind must pass the same function.
            inputs: int64 [F, A] on the host, the same for all `count` steps.
            count: number of steps.
            kind: index of the kind of step.
        Returns:
            the outputs of each step.
        """
        live = inputs.shape[1]
        with torch.cuda.device(self._device):
            size = self._sizes[kind].choose(live)
            if size is None:
                on_device = inputs.to(self._device, non_blocking=True)
                return [step(on_device) for _ in range(count)]
            graph = self._graphs.get((kind, size))
            if graph is None:
                unused = self._unused.repeat(1, size).to(self._device, non_blocking=True)
                graph = self._graphs[kind, size] = _Graph(step, unused, self._stream, self._pool)
            padded = self._unused.repeat(1, size)
            padded[:, :live] = inputs
            graph.inputs.copy_(padded, non_blocking=True)  # the driver copies unpinned memory before it returns
            found = []
            for _ in range(count):
                graph.graph.replay()
                found.append(tuple(output[:live].clone() for output in graph.outputs))  # the next replay overwrites it
            return found

    def clear(self) -> None:
        """Destroy all graphs and free their memory."""
        try:
            with _CAPTURE:
                if self._graphs:
                    torch.cuda.synchronize(self._device)  # replays may still be running
                for graph in self._graphs.values():
                    graph.graph.reset()
        finally:
            self._graphs.clear()
            for sizes in self._sizes:
                sizes.captured.clear()
            self._pool = torch.cuda.graph_pool_handle()  # torch refuses the handle of a pool whose graphs are all gone

    def close(self) -> None:
        """Destroy all graphs; the instance cannot be used afterwards."""
        try:
            self.clear()
        finally:
            give_back_stream(self._stream)


class _Graph:
    """The graph of one size. It does not refer to the step, because the step's owner holds this graph."""

    def __init__(
        self, step: Step, inputs: torch.Tensor, stream: torch.cuda.Stream, pool: "torch.cuda._POOL_HANDLE"
    ) -> None:
        self.inputs = inputs
        self.graph = torch.cuda.CUDAGraph()
        with _CAPTURE:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # a capture can neither compile kernels nor initialise libraries
                    step(inputs)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs = step(inputs)
