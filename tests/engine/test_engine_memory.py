"""Memory of the engine: freed when a call returns, within its budget, and all graphs destroyed together."""

import copy
import dataclasses
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine import kept_backend as kept_module
from cdgen.engine import paged_backend as paged_module
from cdgen.engine.backend import Start
from cdgen.engine.device_state import DeviceState
from cdgen.engine.graphs import GraphSizes, StepGraphs, give_back_stream, take_stream
from cdgen.engine.page_store import CacheShape
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, make_requests
from cdgen.engine.shared_cache import SharedKVCache
from cdgen.engine.static_backend import StaticBackend
from cdgen.errors import InputError
from cdgen.models.loading import load
from tests.helpers.engines import PROMPTS, backend, free, outputs_of, requests

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
    """Return a backend that replays graphs and has two rounds of four steps in flight, as on a GPU."""
    return as_on_a_gpu(backend(lm, params, size))


def as_on_a_gpu(paged: PagedBackend) -> PagedBackend:
    paged._graphs, paged.steps_per_round, paged.rounds_in_flight = paged._new_graphs(), 4, 2
    return paged


@pytest.fixture
def made(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[PagedBackend]:
    """Collect the backends that ContrastiveLM makes."""
    found: list[PagedBackend] = []

    def make(*given: Any, **options: Any) -> PagedBackend:
        found.append(PagedBackend(*given, **options))
        return found[-1]

    monkeypatch.setattr("cdgen.engine.kept_backend.PagedBackend", make)
    return found


@pytest.mark.parametrize("graphs", [False, True], ids=["", "graphs"])
def test_the_backend_is_kept_and_serves_smaller_calls(graphs, models, made, exact, fake_cuda, monkeypatch) -> None:
    """Sampling parameters may change between calls; outputs are those of a new ContrastiveLM."""
    calls = [
        (PROMPTS, free()),
        (PROMPTS, free(seed=5, alpha=0.3, logprobs=False)),
        (PROMPTS[:2], free(n=1, temperature=0.5, max_tokens=4)),
        (PROMPTS, free(no_repeat_ngram_size=2, min_tokens=3)),
        (PROMPTS, free(outside_head="shifted_good", stop_token_ids=tuple(range(40, 120)))),
        (PROMPTS, free(repetition_penalty=1.5, logit_bias={40: 3.0}, alpha=0.02)),
        (PROMPTS, free(repetition_penalty=0.7, logit_bias={41: 3.0}, alpha=0.02)),
        (PROMPTS, [free(n=1 + at % 3, seed=at, top_k=2 * at, presence_penalty=0.1 * at) for at in range(len(PROMPTS))]),
        (PROMPTS, free()),
    ]
    expected = [ContrastiveLM(**models).generate(*call) for call in calls]
    made.clear()
    if graphs:
        make = kept_module.PagedBackend
        monkeypatch.setattr(kept_module, "PagedBackend", lambda *given, **more: as_on_a_gpu(make(*given, **more)))
    lm = ContrastiveLM(**models)
    assert [lm.generate(*call) for call in calls] == expected
    assert len(made) == 1


def test_a_graph_that_is_kept_reads_tensors_that_are_kept() -> None:
    """A graph holds addresses. With other stop tokens or without `min_tokens` it is captured anew."""
    params = SamplingParams(min_tokens=2)
    state = DeviceState(params, [1, 5], cache_rows=3, max_num_seqs=4, device=CPU)
    read = [*state._sampling, *state._own_sampling, state._penalties, state._table, state._stop]
    state.begin(dataclasses.replace(params, seed=3, temperature=0.5), [1, 5], varied=True)
    after = [*state._sampling, *state._own_sampling, state._penalties, state._table, state._stop]
    assert all(one is other for one, other in zip(read, after, strict=True))
    state.begin(params, [1, 6])
    assert state._stop.tolist() == [1, 6]
    changed = dataclasses.replace(params, logit_bias={5: 1.0})
    state.begin(changed, [1, 6], [[4], [5, 6]])
    bias, words = state._bias, state._words
    state.begin(dataclasses.replace(changed, seed=4), [1, 6], [[4], [5, 6]])
    assert state._bias is bias and state._words is words and words.tolist() == [[-1, 4], [5, 6]]
    state.begin(params, [1, 6])
    assert state._bias is state._words is None


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 20},
        {"contrast_strength": 0.0},
        {"max_num_seqs": 2},
        {"kv_cache": {"kv_cache_dtype": torch.bfloat16, "kv_cache_memory_bytes": None}},
        {"kv_cache": {"kv_cache_dtype": None, "kv_cache_memory_bytes": 10**6}},
    ],
    ids=str,
)
def test_a_call_that_the_backend_does_not_fit_replaces_it(models, made, change) -> None:
    lm = ContrastiveLM(**models)
    lm.generate(PROMPTS, free())
    of_model = {name: value for name, value in change.items() if hasattr(lm, name)}
    for name, value in of_model.items():
        setattr(lm, name, value)
    of_params = {name: value for name, value in change.items() if name not in of_model}
    lm.generate(PROMPTS, free(**of_params))
    assert [backend.cache.stores == () for backend in made] == [True, False]


def test_a_dialogue_rarely_replaces_the_backend(models, made) -> None:
    """Each call has a longer prompt than the one before it, up to the models' 256 positions."""
    lm, prompts = ContrastiveLM(**models), [[5] * length for length in range(100, 248, 7)]
    for prompt in prompts:
        lm.generate([prompt], free(n=1, max_tokens=8))
    assert [backend.max_length for backend in made] == [108, 135, 168, 210, 256]


@pytest.mark.parametrize("pages", [9, 8])
def test_a_longer_backend_stays_within_the_budget(pages, models, made) -> None:
    """The second call needs 115 tokens, 8 pages. If the budget has one page more, the backend has room for 135."""
    need = backend(ContrastiveLM(**models), free()).cache.page_bytes
    lm = ContrastiveLM(**models, kv_cache_memory_bytes=pages * need)
    made.clear()
    for length in (100, 107):
        lm.generate([[5] * length], free(n=1, max_tokens=8))
    assert [backend.max_length for backend in made] == [108, 135 if pages == 9 else 115]


def test_replaced_parameters_are_used(good, bad, made) -> None:
    """The kept backend holds the old tensors of the parameters."""
    good = copy.deepcopy(good)
    lm, other = ContrastiveLM(good, bad), copy.deepcopy(good)
    before = lm.generate(PROMPTS, free())
    other.load_state_dict({name: x + 0.05 * torch.randn_like(x) for name, x in good.state_dict().items()})
    expected = ContrastiveLM(other, bad).generate(PROMPTS, free())
    for parameter, new in zip(good.parameters(), other.parameters(), strict=True):
        parameter.data = new.data.clone()
    assert lm.generate(PROMPTS, free()) == expected != before
    with torch.no_grad():
        for parameter in good.parameters():
            parameter.mul_(1.1)
    copied = copy.deepcopy(good)
    assert lm.generate(PROMPTS, free()) == ContrastiveLM(copied, bad).generate(PROMPTS, free()) != expected


def test_calls_in_two_threads_have_two_backends(models, made) -> None:
    lm, expected = ContrastiveLM(**models), {}
    for seed in (1, 2):
        expected[seed] = ContrastiveLM(**models).generate(PROMPTS, free(seed=seed))
    inner: list[Any] = []
    outer = lm.generate(PROMPTS, free(seed=1), lambda count: inner or inner.append(lm.generate(PROMPTS, free(seed=2))))
    assert (outer, inner) == (expected[1], [expected[2]])
    assert [backend.cache.stores == () for backend in made[-2:]] == [False, True], "one of them is kept"


@pytest.mark.parametrize("kind", ["paged", "paged, graphs", "static"])
@pytest.mark.parametrize("ends", ["close", "del"])
def test_nothing_is_left_when_the_models_are_closed_or_deleted(
    kind, ends, models, no_collector, monkeypatch, request
) -> None:
    """The cyclic collector may run long after the memory is needed."""
    lm, alive = ContrastiveLM(**models), []
    cls = StaticBackend if kind == "static" else PagedBackend

    def make(*given: Any, **options: Any) -> Any:
        built = cls(*given, **options)
        if kind == "paged, graphs":
            as_on_a_gpu(built)
        alive.append(weakref.ref(built))
        if kind != "static":
            alive.append(weakref.ref(built.cache))
        return built

    if kind == "paged, graphs":
        request.getfixturevalue("fake_cuda")
    if kind == "static":
        lm.static_reason = "for the test"
    user = "jobs" if kind == "static" else "kept_backend"
    monkeypatch.setattr(f"cdgen.engine.{user}.{cls.__name__}", make)
    for _ in range(2):
        lm.generate(PROMPTS, free(logprobs=False))
    if ends == "close":
        lm.close()
    else:
        del lm
    assert alive and [reference() for reference in alive] == [None] * len(alive)
    if kind == "paged, graphs":
        fake = request.getfixturevalue("fake_cuda")
        assert {take_stream(CPU) for _ in fake.streams[:]} == set(fake.streams), "streams are given back"


def test_an_error_frees_the_cache_while_its_traceback_is_kept(models, made, monkeypatch) -> None:
    lm = ContrastiveLM(**models)
    expected = lm.generate(PROMPTS, free())
    monkeypatch.setattr(made[0], "launch", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.generate(PROMPTS, free())
    assert made[0].cache.stores == ()
    assert lm.generate(PROMPTS, free()) == expected, "the next call builds another backend"
    assert len(made) == 2


@pytest.mark.parametrize("size", [1, 3, 5])
def test_graphs_draw_what_plain_steps_draw(size, models, exact, fake_cuda) -> None:
    """Sequences end at any time, so that graphs of several sizes run, with unused rows."""
    lm, params = ContrastiveLM(**models), free(stop_token_ids=tuple(range(40, 120)), alpha=0.3, logprobs=False)
    expected = outputs_of(lm.pair, backend(lm, params), requests(), params)
    assert outputs_of(lm.pair, graph_backend(lm, params, size), requests(), params) == expected
    assert sum(graph.replays for graph in fake_cuda.graphs) > 5


def test_the_last_step_of_a_sequence_is_a_replay_too(models, fake_cuda) -> None:
    """1 + 4 + 1 tokens: a single remaining step also replays a graph instead of launching its kernels one by one."""
    lm, params = ContrastiveLM(**models), free(max_tokens=6, logprobs=False)
    outputs_of(lm.pair, graph_backend(lm, params, size=64), requests(), params)
    assert [graph.replays for graph in fake_cuda.graphs] == [5]


@pytest.mark.parametrize("eager", [0, 1, 100])
def test_prefills_in_graphs_compute_what_others_compute(eager, models, exact, fake_cuda, monkeypatch) -> None:
    """Prompts of several lengths are padded to the size of a graph."""
    monkeypatch.setattr("cdgen.engine.paged_prompts.EAGER_PREFILLS", eager)
    monkeypatch.setattr("cdgen.engine.paged_prompts.PREFILL_TOKENS", 24)
    lm, params = ContrastiveLM(**models), free(n=2)
    expected = outputs_of(lm.pair, backend(lm, params), requests(2), params)
    paged = graph_backend(lm, params)
    assert outputs_of(lm.pair, paged, requests(2), params) == expected
    assert bool(paged._graphs.prefill._graphs) == (eager < 100)


def test_graphs_of_an_engine_share_a_stream_and_a_pool_and_are_destroyed_together(fake_cuda) -> None:
    """The graphs of another engine have another stream and pool."""

    def step_graphs() -> StepGraphs:
        return StepGraphs([GraphSizes(64)], [-1], CPU)

    def call(graphs: StepGraphs, live: int) -> None:
        inputs = torch.arange(live).unsqueeze(0)
        drawn = graphs(lambda inputs: (inputs[0] + 1,), inputs, 3)
        assert [outputs[0].tolist() for outputs in drawn] == [(inputs[0] + 1).tolist()] * 3

    first, second = step_graphs(), step_graphs()
    for live in (3, 17, 64, 17):
        call(first, live)
    call(second, 5)
    own, other = fake_cuda.graphs[:3], fake_cuda.graphs[3:]
    assert len(other) == 1
    assert len({(graph.stream, graph.pool) for graph in own}) == 1
    assert own[0].stream is not other[0].stream and own[0].pool != other[0].pool
    first.close()
    assert [graph.resets for graph in fake_cuda.graphs] == [1, 1, 1, 0]
    third = step_graphs()
    call(third, 2)
    assert fake_cuda.graphs[-1].stream is own[0].stream, "streams are reused, because each keeps a workspace"
    assert fake_cuda.graphs[-1].pool != own[0].pool


def test_what_bad_reads_on_its_own_stream_is_not_reused_too_early(models, fake_cuda, monkeypatch) -> None:
    """The allocator reuses freed memory in the order of its own stream, unless another stream is recorded."""
    lm, params = ContrastiveLM(**models), free(logprobs=False, max_tokens=2)
    paged, side = backend(lm, params), take_stream(CPU)
    paged._runner._side = side
    bad, read = paged._runner.runners[1], []
    run = bad.hidden_states
    recorded: list[tuple[torch.Tensor, object]] = []
    monkeypatch.setattr(bad, "hidden_states", lambda *given: read.append(given[2]) or run(*given))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: recorded.append((x, stream)))
    outputs_of(lm.pair, paged, requests(), params)
    assert read and all(x is y and of is side for x, (y, of) in zip(read, recorded, strict=True))


def test_unused_rows_stay_at_position_zero() -> None:
    """Otherwise they would run past the ends of their tables, since every step advances the rows."""
    state = DeviceState(SamplingParams(no_repeat_ngram_size=2), [], cache_rows=3, max_num_seqs=4, device=CPU)
    (request,) = make_requests(Prompts([[5]]), [(0, 0)])
    state.start(torch.tensor([0]), [Start(request, [0])], max_length=2)
    cache_row = torch.tensor([-1, 2, -1])
    for _ in range(5):
        newest = state.newest(cache_row)
        assert newest.position.tolist()[::2] == newest.token.tolist()[::2] == [0, 0]
        position = torch.where(cache_row < 0, newest.position + 1, 0)
        state.append(cache_row, newest.token + 7, position)
        state.banned(cache_row, position)


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
    lm.close()
    monkeypatch.setattr(paged_module, "free_memory", lambda device: int(7.9 * page / 0.9))
    assert backend(lm, params).cache.free_pages == 7
    assert [[o.token_ids for o in r.outputs] for r in lm.generate(PROMPTS, params)] == [
        [o.token_ids for o in r.outputs] for r in expected
    ]
    assert backend(lm, params, kv_cache_memory_bytes=9 * page).cache.free_pages == 9, (
        "an explicit budget is not limited"
    )
    lm.close()
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
    launch = paged.launch
    monkeypatch.setattr(paged, "launch", lambda *given: (launch(*given), fail(CPU)))
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        outputs_of(lm.pair, paged, requests(), params)
    assert paged.cache.stores == () and paged._graphs is None
    assert take_stream(CPU) is fake_cuda.streams[0]
