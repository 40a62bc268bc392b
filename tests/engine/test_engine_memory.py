"""Memory of the engine: freed when a call returns, within its budget, and all graphs destroyed together."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine import paged_backend as paged_module
from cdgen.engine.engine import Engine
from cdgen.engine.graphs import StepGraphs, give_back_stream, take_stream
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import ModelPair
from cdgen.engine.shared_cache import CacheShape, SharedKVCache
from cdgen.engine.static_backend import StaticBackend
from cdgen.errors import InputError
from cdgen.models.loading import load
from cdgen_kernels import SamplingTensors, make_sampling_tensors
from tests.helpers.engines import PROMPTS, backend, free, requests

CPU = torch.device("cpu")


@pytest.fixture
def models(good: torch.nn.Module, bad: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"good": good, "bad": bad, "tokenizer": tokenizer}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Disable the cyclic collector: whatever is freed within the test is freed by its reference count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def graph_backend(lm: ContrastiveLM, params: SamplingParams, size: int = 4) -> PagedBackend:
    """Return a backend that replays graphs and syncs every fourth step, as on a GPU."""
    paged = backend(lm, params, size)
    paged._graphs, paged.sync_every = StepGraphs(size, CPU), 4
    return paged


@pytest.mark.parametrize("kind", ["paged", "paged, graphs", "static"])
def test_nothing_is_left_when_generate_returns(kind, models, no_collector, monkeypatch, request) -> None:
    """The cyclic collector may run long after the next call needs the memory."""
    lm, alive = ContrastiveLM(**models), []
    made = StaticBackend if kind == "static" else paged_module.PagedBackend

    def make(pair: ModelPair, params: SamplingParams, size: int, *rest: Any, **options: Any) -> Any:
        built = made(pair, params, size, *rest, **options)
        if kind == "paged, graphs":
            built._graphs, built.sync_every = StepGraphs(size, CPU), 4
        alive.append(weakref.ref(built))
        if kind != "static":
            alive.append(weakref.ref(built.cache))
        return built

    if kind == "paged, graphs":
        request.getfixturevalue("fake_cuda")
    if kind == "static":
        lm.static_reason = "for the test"
    monkeypatch.setattr(f"cdgen.engine.llm.{made.__name__}", make)
    lm.generate(PROMPTS, free(logprobs=False))
    assert alive and [reference() for reference in alive] == [None] * len(alive)


def test_an_error_frees_the_cache_while_its_traceback_is_kept(models, monkeypatch) -> None:
    lm, params = ContrastiveLM(**models), free()
    paged = backend(lm, params)
    monkeypatch.setattr(paged, "step", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Engine(lm.pair, paged, requests(), params).run()
    assert paged.cache.keys == paged.cache.values == ()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_graphs_draw_what_plain_steps_draw(size, models, exact, fake_cuda) -> None:
    """Sequences end at any time, so that graphs of several sizes run, with unused rows."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)), alpha=0.3, logprobs=False)
    expected = Engine(lm.pair, backend(lm, params), requests(), params).run()
    assert Engine(lm.pair, graph_backend(lm, params, size), requests(), params).run() == expected
    assert sum(graph.replays for graph in fake_cuda.graphs) > 5


def test_the_last_step_of_a_sequence_is_a_replay_too(models, fake_cuda) -> None:
    """1 + 4 + 1 tokens: a single remaining step also replays a graph instead of launching its kernels one by one."""
    lm, params = ContrastiveLM(**models), free(max_tokens=6, logprobs=False)
    paged = graph_backend(lm, params, size=64)
    paged.step = None
    Engine(lm.pair, paged, requests(), params).run()
    assert [graph.replays for graph in fake_cuda.graphs] == [5]


def test_graphs_of_an_engine_share_a_stream_and_a_pool_and_are_destroyed_together(fake_cuda) -> None:
    """The graphs of another engine have another stream and pool."""

    def call(graphs: StepGraphs, live: int) -> None:
        ids = torch.arange(live)
        drawn = graphs(lambda ids, *rest: ids + 1, ids, ids, ids.int(), make_sampling_tensors(live), 3)
        assert drawn.tolist() == [(ids + n).tolist() for n in (1, 2, 3)]

    first, second = StepGraphs(64, CPU), StepGraphs(64, CPU)
    for live in (3, 17, 64, 17):
        call(first, live)
    call(second, 5)
    own, other = fake_cuda.graphs[:3], fake_cuda.graphs[3:]
    assert len(other) == 1
    assert len({(graph.stream, graph.pool) for graph in own}) == 1
    assert own[0].stream is not other[0].stream and own[0].pool != other[0].pool
    first.close()
    assert [graph.resets for graph in fake_cuda.graphs] == [1, 1, 1, 0]
    third = StepGraphs(64, CPU)
    call(third, 2)
    assert fake_cuda.graphs[-1].stream is own[0].stream, "streams are reused, because each keeps a workspace"
    assert fake_cuda.graphs[-1].pool != own[0].pool


def test_unused_rows_stay_within_the_tables(fake_cuda) -> None:
    """Their positions advance with every replay, and start at 0 with every call."""
    furthest = torch.zeros((), dtype=torch.long)

    def step(
        ids: torch.Tensor, position: torch.Tensor, cache_row: torch.Tensor, sampling: SamplingTensors
    ) -> torch.Tensor:
        furthest.copy_(torch.maximum(furthest, position.max()))
        return ids

    graphs, ids = StepGraphs(4, CPU), torch.zeros(3, dtype=torch.long)
    for _ in range(5):
        graphs(step, ids, ids, ids.int(), make_sampling_tensors(3), 4)
    assert furthest == 3


def test_streams_are_exclusive_until_given_back(fake_cuda) -> None:
    first, second = take_stream(CPU), take_stream(CPU)
    assert first is not second
    give_back_stream(first)
    assert take_stream(CPU) is first and take_stream(CPU) not in (first, second)


def test_by_default_the_cache_takes_no_more_than_is_free(models, monkeypatch) -> None:
    """There is room for seven pages, and a sequence takes three. Sequences have to wait, and outputs stay the same."""
    lm, params = ContrastiveLM(**models), free()
    expected = lm.generate(PROMPTS, params)
    page = backend(lm, params).cache.page_bytes
    monkeypatch.setattr(paged_module, "free_memory", lambda device: int(7.9 * page / 0.9))
    assert backend(lm, params).cache.free_pages == 7
    assert [[o.token_ids for o in r.outputs] for r in lm.generate(PROMPTS, params)] == [
        [o.token_ids for o in r.outputs] for r in expected
    ]
    assert backend(lm, params, kv_cache_memory_bytes=9 * page).cache.free_pages == 9, (
        "an explicit budget is not limited"
    )
    monkeypatch.setattr(paged_module, "free_memory", lambda device: page)
    with pytest.raises(
        InputError, match=r"a sequence of 46 tokens needs [\d,]+ bytes of cache, but the budget is [\d,]+"
    ):
        lm.generate(PROMPTS, params)


def test_memory_that_cannot_be_allocated_is_an_error_of_one_line(folders, monkeypatch) -> None:
    huge = CacheShape(num_layers=10**6, num_kv_heads=10**3, head_dim=10**3, dtype=torch.float32)
    with pytest.raises(InputError, match=r"^a cache of [\d.e+]+ GB cannot be allocated: cpu has not enough memory; "):
        SharedKVCache([huge], cache_rows=1, max_length=16, device=CPU)

    def full(module: torch.nn.Module, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    monkeypatch.setattr("cdgen.models.loading.free_memory_text", lambda device, free: "cuda:0 has 0.50 GB free")
    with pytest.raises(InputError, match=r"good: its weights take 0\.00 GB, but cuda:0 has 0\.50 GB free$"):
        load(folders["good"])


def test_a_device_that_fails_frees_what_it_can(models, fake_cuda, monkeypatch) -> None:
    """After a CUDA error every call fails, including the wait in close(). Pages and streams are still given back."""

    def fail(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lm, params = ContrastiveLM(**models), free(logprobs=False)
    paged = graph_backend(lm, params)
    steps = paged.steps
    monkeypatch.setattr(paged, "steps", lambda *given: (steps(*given), fail(CPU)))
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Engine(lm.pair, paged, requests(), params).run()
    assert paged.cache.keys == () and paged._graphs is None
    assert take_stream(CPU) is fake_cuda.streams[0]
