"""What the engine holds on its device: freed when a call returns, within a budget, and graphs that die together."""

import gc
import weakref

import pytest
import torch

from cdgen import ContrastiveLM
from cdgen.engine import paged_backend as paged_module
from cdgen.engine.engine import Engine
from cdgen.engine.graphs import StepGraphs, give_back_stream, take_stream
from cdgen.engine.shared_cache import CacheShape, SharedKVCache
from cdgen.engine.static_backend import StaticBackend
from cdgen.errors import InputError
from cdgen.models.loading import load
from cdgen_kernels.ops import make_sampling_tensors
from tests.helpers.engines import PROMPTS, backend, free, requests

CPU = torch.device("cpu")


@pytest.fixture
def models(good, bad, tokenizer):
    return {"good": good, "bad": bad, "tokenizer": tokenizer}


@pytest.fixture
def no_collector():
    """Whatever is freed within the test is freed by its reference count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def graph_backend(lm, params, size=4):
    """A backend that replays graphs and waits for tokens every fourth step, as on a GPU."""
    texts = backend(lm, params, size)
    texts._graphs, texts.sync_every = StepGraphs(size, CPU), 4
    return texts


@pytest.fixture
def faults_in_tokens(monkeypatch):
    """On a GPU a row without an answer is reported by its token; on the CPU the op would raise."""
    monkeypatch.setattr("cdgen_kernels.ops._raise_on_fault", lambda codes: None)


@pytest.mark.parametrize("kind", ["paged", "paged, graphs", "static"])
def test_nothing_is_left_when_generate_returns(kind, models, no_collector, monkeypatch, request):
    """The cyclic collector may come long after the memory of the next call was needed."""
    lm, alive = ContrastiveLM(**models), []
    name = "static_batch.StaticBackend" if kind == "static" else "paged.PagedBackend"
    made = StaticBackend if kind == "static" else paged_module.PagedBackend

    def make(pair, params, size, *rest, **options):
        texts = made(pair, params, size, *rest, **options)
        if kind == "paged, graphs":
            texts._graphs, texts.sync_every = StepGraphs(size, CPU), 4
        alive.append(weakref.ref(texts))
        if kind != "static":
            alive.append(weakref.ref(texts.cache))
        return texts

    if kind == "paged, graphs":
        request.getfixturevalue("fake_cuda")
        request.getfixturevalue("faults_in_tokens")
    if kind == "static":
        lm.static_reason = "for the test"
    monkeypatch.setattr(f"cdgen.engine.llm.{name.split('.')[1]}", make)
    lm.generate(PROMPTS, free(logprobs=False))
    assert alive and [reference() for reference in alive] == [None] * len(alive)


def test_an_error_frees_the_cache_while_its_traceback_is_kept(models, monkeypatch):
    lm, params = ContrastiveLM(**models), free()
    texts = backend(lm, params)
    monkeypatch.setattr(texts, "step", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Engine(lm.pair, texts, requests(), params).run()
    assert texts.cache.keys == texts.cache.values == ()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_graphs_draw_what_plain_steps_draw(size, models, exact, fake_cuda, faults_in_tokens):
    """Texts end at any time, so that graphs of several sizes run, with unused rows."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)), alpha=0.3, logprobs=False)
    expected = Engine(lm.pair, backend(lm, params), requests(), params).run()
    assert Engine(lm.pair, graph_backend(lm, params, size), requests(), params).run() == expected
    assert sum(graph.replays for graph in fake_cuda.graphs) > 5


def test_the_last_step_of_a_text_is_a_replay_too(models, fake_cuda, faults_in_tokens):
    """1 + 4 + 1 tokens: a step that stands alone is no reason to launch its kernels one by one."""
    lm, params = ContrastiveLM(**models), free(max_tokens=6, logprobs=False)
    texts = graph_backend(lm, params, size=64)
    texts.step = None
    Engine(lm.pair, texts, requests(), params).run()
    assert [graph.replays for graph in fake_cuda.graphs] == [5]


def test_graphs_of_an_engine_share_a_stream_and_a_pool_and_die_together(fake_cuda):
    """Those of another engine have others."""

    def call(graphs, live):
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
    assert fake_cuda.graphs[-1].stream is own[0].stream, "a stream is used again, since each keeps a workspace"
    assert fake_cuda.graphs[-1].pool != own[0].pool


def test_unused_rows_stay_within_the_tables(fake_cuda):
    """Their positions advance with every replay, and begin at 0 again with every call."""
    furthest = torch.zeros((), dtype=torch.long)

    def step(ids, position, row, sampling):
        furthest.copy_(torch.maximum(furthest, position.max()))
        return ids

    graphs, ids = StepGraphs(4, CPU), torch.zeros(3, dtype=torch.long)
    for _ in range(5):
        graphs(step, ids, ids, ids.int(), make_sampling_tensors(3), 4)
    assert furthest == 3


def test_streams_are_exclusive_until_given_back(fake_cuda):
    first, second = take_stream(CPU), take_stream(CPU)
    assert first is not second
    give_back_stream(first)
    assert take_stream(CPU) is first and take_stream(CPU) not in (first, second)


def test_by_default_the_cache_takes_no_more_than_is_free(models, monkeypatch):
    """Room for two texts of three pages and a little: texts wait for one another, and are the same."""
    lm, params = ContrastiveLM(**models), free()
    expected = lm.generate(PROMPTS, params)
    page = backend(lm, params).cache.page_bytes
    monkeypatch.setattr(paged_module, "free_memory", lambda device: int(7.9 * page / 0.9))
    texts = backend(lm, params)
    assert texts.cache.free_pages == 7
    assert [[o.token_ids for o in r.outputs] for r in lm.generate(PROMPTS, params)] == [
        [o.token_ids for o in r.outputs] for r in expected
    ]
    assert backend(lm, params, kv_cache_memory_bytes=9 * page).cache.free_pages == 9, "a budget that is given stands"
    monkeypatch.setattr(paged_module, "free_memory", lambda device: page)
    with pytest.raises(InputError, match=r"a text of 46 tokens needs [\d,]+ bytes of cache, but the budget is [\d,]+"):
        lm.generate(PROMPTS, params)


def test_memory_that_cannot_be_had_is_one_line(folders, monkeypatch):
    huge = CacheShape(num_layers=10**6, num_kv_heads=10**3, head_dim=10**3, dtype=torch.float32)
    with pytest.raises(InputError, match=r"^a cache of [\d.e+]+ GB cannot be allocated: cpu has not enough memory; "):
        SharedKVCache([huge], cache_rows=1, max_length=16, device=CPU)

    def full(module, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    monkeypatch.setattr("cdgen.models.loading.free_memory_text", lambda device, free: "cuda:0 has 0.50 GB free")
    with pytest.raises(InputError, match=r"good: its weights take 0\.00 GB, but cuda:0 has 0\.50 GB free$"):
        load(folders["good"])


def test_a_device_that_fails_frees_what_it_can(models, fake_cuda, faults_in_tokens, monkeypatch):
    """After a CUDA error every call fails, the wait in close() too: pages and streams are given back all the same."""

    def fail(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lm, params = ContrastiveLM(**models), free(logprobs=False)
    texts = graph_backend(lm, params)
    steps = texts.steps
    monkeypatch.setattr(texts, "steps", lambda *given: (steps(*given), fail(CPU)))
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Engine(lm.pair, texts, requests(), params).run()
    assert texts.cache.keys == () and texts._graphs is None
    assert take_stream(CPU) is fake_cuda.streams[0]
