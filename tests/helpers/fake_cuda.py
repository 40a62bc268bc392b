"""CUDA graphs on a CPU: a capture records the ops that run, and each replay runs them again on the same tensors."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.stream = self.pool = None
        self.replays = self.resets = 0

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, result in self.calls:
            _write_again(result, function(*args, **kwargs))

    def reset(self) -> None:
        self.resets += 1
        self.calls.clear()


@contextlib.contextmanager
def operators_of_fake_tensors() -> Iterator[None]:
    """Run x[1:, None] and ~x by other ops: a torch without CUDA cannot apply these two to a fake CUDA tensor."""
    original = torch.Tensor.__getitem__

    def basic(x: torch.Tensor, index: Any) -> torch.Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        if x.device.type != "cuda" or not all(part is None or isinstance(part, int | slice) for part in parts):
            return original(x, index)
        dim = 0
        for part in parts:
            if part is None:
                x = x.unsqueeze(dim)
            elif isinstance(part, int):
                x, dim = x.select(dim, part), dim - 1
            else:
                start, stop, step = part.indices(x.shape[dim])
                assert step == 1
                x = x.narrow(dim, start, max(0, stop - start))
            dim += 1
        return x

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "__getitem__", basic)
        patched.setattr(torch.Tensor, "__invert__", lambda x: torch.bitwise_not(x))
        yield


def _write_again(result: object, again: object) -> None:
    if isinstance(result, (list, tuple)):
        for one, other in zip(result, again, strict=True):
            _write_again(one, other)
    elif isinstance(result, torch.Tensor) and result.data_ptr() != again.data_ptr():  # a view has nothing to copy
        result.copy_(again)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        self.graph.calls.append((function, args, kwargs or {}, result))
        return result


class Stream:
    """Stands in for torch.cuda.Stream; everything runs in order."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None:
        pass


class FakeCuda:
    """Records what the code under test creates."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.streams: list[Stream] = []
        self.pools = 0

    def graph(self) -> Graph:
        self.graphs.append(Graph())
        return self.graphs[-1]

    def stream(self, device: torch.device) -> Stream:
        self.streams.append(Stream(device))
        return self.streams[-1]

    def pool(self) -> int:
        self.pools += 1
        return self.pools

    @contextlib.contextmanager
    def capture(self, graph: Graph, pool: int, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local", "CUDA calls of another thread would break the capture"
        sharing = [other for other in self.graphs if other.pool == pool]
        assert not sharing or not all(other.resets for other in sharing), (
            "torch refuses a pool whose graphs are all gone"
        )
        graph.pool, graph.stream = pool, stream
        with _Recorder(graph):
            yield


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Make `cdgen.engine.graphs` work on the CPU."""
    fake, current = FakeCuda(), Stream(torch.device("cpu"))
    monkeypatch.setattr("cdgen.engine.graphs._spare_streams", {torch.device("cpu"): []})
    for name, stand_in in {
        "CUDAGraph": fake.graph,
        "Stream": fake.stream,
        "graph_pool_handle": fake.pool,
        "graph": fake.capture,
        "current_stream": lambda: current,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return fake
