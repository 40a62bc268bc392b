"""The decode step as a GPU would capture it: no host sync, no tensor of unknown size, few launches."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.backend import Start
from cdgen.engine.graphs import StepGraphs
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, make_requests
from cdgen.engine.static_backend import StaticBackend
from cdgen_kernels import SamplingTensors, make_sampling_tensors
from tests.helpers.tiny_models import make_llama

# Ops that launch nothing, followed by views.
NO_WORK = {"device", "empty", "new_empty", "detach", "alias"}
NO_WORK |= {"view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "unsqueeze", "expand", "t", "transpose"}
NO_WORK |= {"permute", "select", "slice", "split", "split_with_sizes", "chunk", "unbind"}


class Launches(TorchDispatchMode):
    """Counts the ops that launch work on the device, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in NO_WORK:
            self.found[name] += 1
        return function(*args, **kwargs or {})


def on_fake_cuda(thing: Any) -> Any:
    """Replace every tensor in an object by a fake one on CUDA; return the object."""
    if isinstance(thing, torch.Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device="cuda")
    if hasattr(thing, "_fields"):  # a NamedTuple
        return type(thing)(*map(on_fake_cuda, thing))
    if isinstance(thing, (list, tuple)):
        return type(thing)(map(on_fake_cuda, thing))
    if type(thing).__module__ in ("cdgen.models.llama", "cdgen.engine.shared_cache", "cdgen.engine.paged_backend"):
        for name, value in vars(thing).items():
            setattr(thing, name, on_fake_cuda(value))
    return thing


def step_of(
    good: torch.nn.Module, params: SamplingParams, batch: int = 8, **bad: Any
) -> tuple[Counter[str], torch.Tensor]:
    """Return (ops of a step on CUDA, its tokens)."""
    lm = ContrastiveLM(good, **bad)
    paged = PagedBackend(lm.pair, params, batch, 64)
    sampling = make_sampling_tensors(batch)
    ids, cache_row = torch.zeros(batch, dtype=torch.long), torch.zeros(batch, dtype=torch.int32)
    with FakeTensorMode():
        paged = on_fake_cuda(paged)
        sampling = type(sampling)(*map(on_fake_cuda, sampling))
        ids, position, cache_row = on_fake_cuda([ids, ids, cache_row])
        with Launches() as launches:
            token = paged._advance(ids, position, cache_row, sampling)
    return launches.found, token


@pytest.mark.parametrize("bad", [{"layers": 2}, {"dropout": 0.3}, {"bad": None}], ids=str)
@pytest.mark.parametrize("method", ["contrastive", "contrastive_tail"])
def test_a_step_on_cuda_has_no_host_sync(bad, method) -> None:
    if "bad" in bad:
        method = "ancestral"
    _, token = step_of(make_llama(0, layers=3), SamplingParams.for_method(method), **bad)
    assert token.device.type == "cuda" and token.shape == (8,)


@pytest.mark.parametrize("backend", [PagedBackend, StaticBackend])
def test_starting_sequences_has_no_host_sync(backend, monkeypatch) -> None:
    """Prompts of several lengths: FakeTensorMode raises if a shape would be read from the device."""
    lm, params = ContrastiveLM(make_llama(0), layers=1), SamplingParams(n=3, max_tokens=4)
    running = backend(lm.pair, params, 9, *([64] if backend is PagedBackend else []))
    requests = make_requests(
        Prompts([[5] * n for n in (2, 7, 20)]), [(prompt, index) for prompt in range(3) for index in range(3)]
    )
    starts = [Start(request, count) for request, count in zip(requests, (1, 3, 2), strict=True)]
    for request, _ in starts:
        running.admit(request, 3)
    if backend is StaticBackend:
        for model in lm.pair.models(params):
            monkeypatch.setattr(model, "last_logits", lambda ids, *rest: torch.zeros(len(ids), 300))
            monkeypatch.setattr(model, "new_cache", lambda width: SimpleNamespace(fork=lambda owner, length: owner))
    with FakeTensorMode(allow_non_fake_inputs=True):
        cache_rows, outputs = running.start(starts)
    assert [len(own) for own in cache_rows] == [1, 3, 2] and [len(output) for output in outputs] == [6, 6]


def test_launches_of_a_step() -> None:
    """Ten per layer: two norms, four products, rope and store, attention, two for the gate. The rest is constant."""
    found = {n: step_of(make_llama(0, layers=n), SamplingParams(), layers=1)[0] for n in (3, 4)}
    layer = found[4] - found[3]
    assert sum(layer.values()) == 10, layer
    assert layer["add_rms_norm"] == 2 and layer["rope_and_store"] == layer["paged_attention"] == 1
    rest = sum(found[3].values()) - 4 * 10
    print(f"\nlaunches per step: 10 per layer of either model, and {rest} more")
    assert rest <= 24, found[3]


def test_graphs_are_few(monkeypatch, fake_cuda) -> None:
    """Captures are replaced by a stand-in. Sizes are powers of two, and only the rows in use are read."""
    made, seen = [], []

    class Captured:
        def __init__(self, step: object, size: int, *rest: object) -> None:
            made.append(size)

        def __call__(
            self,
            ids: torch.Tensor,
            position: torch.Tensor,
            cache_row: torch.Tensor,
            sampling: SamplingTensors,
            count: int,
        ) -> torch.Tensor:
            seen.append(len(ids))
            return ids.expand(count, -1)

    monkeypatch.setattr("cdgen.engine.graphs._Graph", Captured)
    graphs = StepGraphs(100, torch.device("cpu"))
    for live in (1, 2, 3, 64, 65, 100, 70, 4):
        ids = torch.arange(live)
        assert graphs(None, ids, ids, ids, make_sampling_tensors(live), 3).shape == (3, live)
    assert made == [1, 2, 4, 64, 100] and seen == [1, 2, 3, 64, 65, 100, 70, 4]
