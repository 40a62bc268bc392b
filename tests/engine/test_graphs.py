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
from cdgen.engine.graphs import GraphSizes
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, make_requests
from cdgen.engine.static_backend import StaticBackend
from tests.helpers.fake_cuda import operators_of_fake_tensors
from tests.helpers.tiny_models import make_llama, make_tokenizer

OWN = {f"cdgen.{name}" for name in ("models.llama", "models.products")}
OWN |= {f"cdgen.engine.{name}" for name in ("shared_cache", "shared_lengths", "page_store", "device_state")}
OWN |= {f"cdgen.engine.{name}" for name in ("paged_backend", "pair_runner")}
# Ops that launch nothing, followed by views.
NO_WORK = {"device", "empty", "new_empty", "detach", "alias"}
NO_WORK |= {"view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "squeeze", "unsqueeze", "expand", "t"}
NO_WORK |= {"transpose", "permute", "select", "slice", "split", "split_with_sizes", "chunk", "unbind"}


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


@pytest.fixture(autouse=True)
def _weights_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdgen.models.products.can_pack", lambda weight: False)


def on_fake_cuda(thing: Any) -> Any:
    """Replace every tensor in an object by a fake one on CUDA; return the object."""
    if isinstance(thing, torch.Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device="cuda")
    if hasattr(thing, "_fields"):  # a NamedTuple
        return type(thing)(*map(on_fake_cuda, thing))
    if isinstance(thing, (list, tuple)):
        return type(thing)(map(on_fake_cuda, thing))
    if type(thing).__module__ in OWN:
        for name, value in vars(thing).items():
            setattr(thing, name, on_fake_cuda(value))
    return thing


def step_of(
    good: torch.nn.Module,
    params: SamplingParams,
    batch: int = 8,
    shared: bool = False,
    varied: bool = False,
    **bad: Any,
) -> tuple[Counter[str], torch.Tensor]:
    """Return (ops of a step on CUDA, its tokens)."""
    lm = ContrastiveLM(good, tokenizer=make_tokenizer(), **bad)
    paged = PagedBackend(lm.pair, params, batch, 64, varied=varied)
    paged._runner.stores_logits = False
    (request,) = make_requests(Prompts([[5, 6]]), [(0, 0)])
    paged._state.start(torch.tensor([0]), [Start(request, [0])], 64)
    cache_row = torch.zeros(1, batch, dtype=torch.long)
    with FakeTensorMode():
        paged, cache_row = on_fake_cuda(paged), on_fake_cuda(cache_row)
        with operators_of_fake_tensors(), Launches() as launches:
            token, *_ = paged._step(cache_row, shared)
    return launches.found, token


@pytest.mark.parametrize("bad", [{"layers": 2}, {"dropout": 0.3}, {"bad": None}], ids=str)
@pytest.mark.parametrize("method", ["contrastive", "contrastive_tail"])
@pytest.mark.parametrize(
    "needs",
    [
        {},
        {"logprobs": True},
        {"min_tokens": 3, "stop_token_ids": (5,)},
        {"no_repeat_ngram_size": 3},
        {"repetition_penalty": 2.0, "frequency_penalty": 1.0, "logit_bias": {5: 1.0}, "bad_words": ("the", "house")},
        {"presence_penalty": 2.0, "logprobs": True},
        {"logprobs": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("varied", [False, True], ids=["", "varied"])
def test_a_step_on_cuda_has_no_host_sync(bad, method, needs, varied) -> None:
    if "bad" in bad:
        method = "ancestral"
    params = SamplingParams.for_method(method, **needs)
    _, token = step_of(make_llama(0, layers=3), params, varied=varied, **bad)
    assert token.device.type == "cuda" and token.shape == (8,)


@pytest.mark.parametrize("bad", [{"layers": 2}, {"dropout": 0.3}], ids=str)
def test_a_step_with_shared_prefixes_launches_the_same_ops(bad) -> None:
    found = [step_of(make_llama(0, layers=3), SamplingParams(), shared=shared, **bad) for shared in (False, True)]
    assert found[0][0] == found[1][0] and found[1][1].device.type == "cuda"


@pytest.mark.parametrize("changes", [{}, {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2}], ids=["", "history"])
@pytest.mark.parametrize("backend", [PagedBackend, StaticBackend])
def test_starting_sequences_has_no_host_sync(backend, changes, monkeypatch) -> None:
    """Prompts of several lengths: FakeTensorMode raises if a shape would be read from the device."""
    lm, params = ContrastiveLM(make_llama(0), layers=1), SamplingParams(n=3, max_tokens=4, **changes)
    running = backend(lm.pair, params, 9, *([64] if backend is PagedBackend else []))
    requests = make_requests(
        Prompts([[5] * n for n in (2, 7, 20)]), [(prompt, index) for prompt in range(3) for index in range(3)]
    )
    starts = [Start(request, list(range(count))) for request, count in zip(requests, (1, 3, 2), strict=True)]
    for request, _ in starts:
        running.admit(request, 3)
    if backend is StaticBackend:
        for model in lm.pair.models(params):
            monkeypatch.setattr(model, "last_logits", lambda ids, *rest: torch.zeros(len(ids), 300))
            monkeypatch.setattr(model, "new_cache", lambda width: SimpleNamespace(fork=lambda owner, length: owner))
    with FakeTensorMode(allow_non_fake_inputs=True):
        drawn = running.start(starts)
    assert drawn.rows.shape == (6,)


def test_launches_of_a_step() -> None:
    """Nine launches per layer: two norms, four products, rope and store, attention, the gate. The rest is constant.

    The rest: an embedding and the last norm of each model, three sampling ops, and seven that read and write the state.
    """
    found = {n: step_of(make_llama(0, layers=n), SamplingParams(), layers=1)[0] for n in (3, 4)}
    layer = found[4] - found[3]
    assert sum(layer.values()) == 9, layer
    assert layer["add_rms_norm"] == 2 and all(
        layer[name] == 1 for name in ("rope_and_store", "paged_attention", "silu_mul")
    )
    rest = found[3] - Counter({name: 4 * count for name, count in layer.items()})
    listed = ", ".join(f"{name} {count}" for name, count in rest.items())
    print(f"\nlaunches per step: 9 per layer of either model, and {rest.total()} more: {listed}")
    assert rest.total() <= 14, rest


def test_graphs_are_few_and_hardly_padded() -> None:
    """A graph is captured for rows that no graph serves, or that have run in a larger one for long enough."""
    sizes = GraphSizes(500)
    assert [sizes.choose(rows) for rows in (500, 499, 260, 251, 250, 249, 100, 9, 8, 1)] == [
        500, 500, 500, 500, 500, 500, 104, 9, 9, 1
    ]  # fmt: skip
    assert sizes.captured == {500, 104, 9, 1}
    for _ in range(100):
        chosen = sizes.choose(300)
    assert chosen == 320 and 300 not in sizes.captured
    assert all(1 - rows / fitting(rows) <= 0.12 for rows in range(1, 1025))


def fitting(rows: int) -> int:
    """Return the size of the graph that is captured for a number of rows."""
    found = GraphSizes(1024).choose(rows)
    assert found is not None and found >= rows
    return found


def test_the_first_prefills_have_no_graph() -> None:
    sizes = GraphSizes(4096, eager_calls=3)
    assert [sizes.choose(tokens) for tokens in (40, 500, 40, 40, 500, 300)] == [None, None, None, 40, 512, 512]
