"""The layer ops: their reference against torch and transformers, and C++ against the reference in float64.

The distance of an implementation from float64 may be the rounding of its result plus a little float32 arithmetic.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from cdgen_kernels import (
    Candidates,
    add_rms_norm,
    gather_logits,
    make_sampling_tensors,
    paged_attention,
    reference,
    rope_and_store,
    select_candidates,
    silu_mul,
)
from tests.helpers.implementations import IMPLEMENTATIONS, NO_CPP
from tests.helpers.paged import Paged, decode, in_fp8, make_paged, make_places, share

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def doubles(tensors: Iterable[Any]) -> list[Any]:
    """Return the arguments with all floating tensors in float64."""
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in tensors]


def in_doubles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in tensors.items()}


def assert_rounded(ours: Tensor, exact: Tensor, scale: float | None = None) -> None:
    """Allow half a unit in the last place of the result's dtype, plus 4e-6 of the largest magnitude."""
    assert not ours.isnan().any() and ours.shape == exact.shape
    unit = torch.finfo(ours.dtype).eps
    allowed = 0.51 * unit * exact.abs() + 4e-6 * (scale or exact.abs().max()) + torch.finfo(ours.dtype).smallest_normal
    assert ((ours.double() - exact).abs() <= allowed).all(), (ours.double() - exact).abs().max()


# ------------------------------------------------------------------------------------------------- add_rms_norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, dim", [(1, 1), (3, 2), (5, 7), (2, 8), (7, 15), (129, 64), (4, 576), (3, 769)])
@pytest.mark.parametrize("has_residual", [False, True])
def test_add_rms_norm(rows, dim, dtype, has_residual) -> None:
    x, residual, weight = (
        random(*shape, dtype=dtype, seed=at) for at, shape in enumerate([(rows, dim)] * 2 + [(dim,)])
    )
    residual = residual if has_residual else None
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    summed = x if residual is None else (x.double() + residual.double()).to(dtype)
    assert torch.equal(total, summed)
    assert_rounded(normed, reference.add_rms_norm(*doubles((summed, None, weight)), 1e-5)[0])


def test_add_rms_norm_matches_transformers() -> None:
    norm = LlamaRMSNorm(24, 1e-3).double()
    norm.weight.data = random(24, dtype=torch.float64)
    x, residual = random(5, 24, dtype=torch.float64, seed=1), random(5, 24, dtype=torch.float64, seed=2)
    normed, total = reference.add_rms_norm(x, residual, norm.weight, 1e-3)
    # transformers squares in float32
    torch.testing.assert_close(normed, norm(x + residual), rtol=1e-6, atol=1e-6)
    assert torch.equal(total, x + residual)


def test_extreme_rows() -> None:
    """Rows of zeros, of numbers with tiny squares and of NaN do not affect each other."""
    x = torch.stack([torch.zeros(40), torch.full((40,), 1e-15), random(40), torch.full((40,), torch.nan)])
    normed, _ = add_rms_norm(x, None, torch.ones(40), 1e-6)
    assert (normed[0] == 0).all() and normed[3].isnan().all()
    assert_rounded(normed[1:3], reference.add_rms_norm(*doubles((x, None, torch.ones(40))), 1e-6)[0][1:3])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_adding_zero_keeps_every_16_bit_number(dtype) -> None:
    """That includes infinities, NaN, subnormal numbers and both zeros."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(256, 256)
    _, total = add_rms_norm(x, torch.zeros_like(x), torch.ones(256, dtype=dtype), 1e-6)
    torch.testing.assert_close(total, x, rtol=0, atol=0, equal_nan=True)


# ------------------------------------------------------------------------------------------------------- silu_mul


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, width", [(1, 1), (3, 7), (2, 8), (130, 33), (4, 1536), (3, 4100)])
def test_silu_mul(rows, width, dtype) -> None:
    gate_up = 4 * random(rows, 2 * width, dtype=dtype)
    gated = silu_mul(gate_up)
    assert gated.is_contiguous() and gated.dtype == dtype
    assert_rounded(gated, reference.silu_mul(gate_up.double()))
    assert torch.equal(silu_mul(gate_up.repeat(1, 2)[:, : 2 * width]), gated)  # rows with a stride of their own
    assert torch.equal(silu_mul(gate_up[-1:])[0], gated[-1])


def test_silu_mul_matches_torch_at_any_magnitude() -> None:
    """Gates for which exp overflows or underflows, infinities and NaN."""
    gate = torch.tensor([0.0, -0.0, 87, -87, -88, 1e4, -1e4, 3e38, -3e38, torch.inf, -torch.inf, torch.nan])
    gated = silu_mul(torch.cat([gate, torch.full((12,), 2.0)])[None])[0]
    expected = torch.nn.functional.silu(gate) * 2
    torch.testing.assert_close(gated, expected, rtol=1e-6, atol=1e-35, equal_nan=True)


# ------------------------------------------------------------------------------------------------- rope_and_store


def tables(positions: int, half: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin [positions, half]."""
    angle = torch.arange(positions)[:, None] * 100.0 ** -(torch.arange(half) / half)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads, kv_heads, dim, page_size", [(1, 1, 2, 1), (4, 2, 6, 3), (9, 3, 64, 16), (3, 3, 80, 4)])
def test_rope_and_store(heads, kv_heads, dim, page_size, dtype, cache_dtype) -> None:
    tokens = 13
    cos, sin = tables(50, dim // 2)
    fused = random(
        tokens, heads + 2 * kv_heads, dim, dtype=dtype
    )  # q, k and v are views of one product, as in the models
    q, k, v = fused.split([heads, kv_heads, kv_heads], 1)
    page_table, cache_row, position = make_places(tokens, page_size)
    cache_row[3] = cache_row[7] = -1
    shape = (page_table.numel(), kv_heads, page_size, dim)
    stores = [torch.full(shape, torch.nan, dtype=cache_dtype) for _ in range(2)]
    rotated = rope_and_store(q, k, v, cos, sin, page_table, cache_row, position, *stores)

    exact = [torch.full(stores[0].shape, torch.nan, dtype=torch.float64) for _ in range(2)]
    expected = reference.rope_and_store(*doubles((q, k, v, cos, sin)), page_table, cache_row, position, *exact)
    assert rotated.is_contiguous()
    assert_rounded(rotated, expected)
    for store, own in zip(stores, exact, strict=True):
        assert torch.equal(store.isnan(), own.isnan()), "memory of other tokens was written"
        assert_rounded(store[~store.isnan()], own[~own.isnan()])


def fp8_cache(pages: int, kv_heads: int, page_size: int, dim: int) -> list[Tensor]:
    """Return keys, values and their scales, all NaN."""
    shape = (pages, kv_heads, page_size)
    numbers = torch.full((2, *shape, dim), torch.nan).to(torch.float8_e4m3fn)
    return [*numbers, *torch.full((2, *shape), torch.nan, dtype=torch.bfloat16)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads, kv_heads, dim, page_size", [(1, 1, 2, 1), (9, 3, 64, 16), (4, 2, 80, 3)])
def test_rope_and_store_in_fp8(heads, kv_heads, dim, page_size, dtype) -> None:
    """Numbers are off by at most 1/16, the smallest by 2^-10 of the scale. Any order of tokens writes the same bits.

    A head's scale is its own, whatever the size of the others.
    """
    tokens = 13
    cos, sin = tables(50, dim // 2)
    q, k, v = (random(tokens, n, dim, dtype=dtype, seed=n + i) for i, n in enumerate((heads, kv_heads, kv_heads)))
    v = v * torch.logspace(-4, 3, tokens)[:, None, None].to(dtype)
    page_table, cache_row, position = make_places(tokens, page_size)
    cache_row[3] = -1
    pages = page_table.numel()
    cache = fp8_cache(pages, kv_heads, page_size, dim)
    rotated = rope_and_store(q, k, v, cos, sin, page_table, cache_row, position, *cache)

    exact = [torch.full((pages, kv_heads, page_size, dim), torch.nan, dtype=torch.float64) for _ in range(2)]
    assert_rounded(
        rotated, reference.rope_and_store(*doubles((q, k, v, cos, sin)), page_table, cache_row, position, *exact)
    )
    for store, scales, own in zip(cache[:2], cache[2:], exact, strict=True):
        unit = own.abs().amax(-1, keepdim=True) / 448
        torch.testing.assert_close(scales.double().unsqueeze(-1), unit, rtol=2**-8, atol=0, equal_nan=True)
        error = (store.double() * scales.double().unsqueeze(-1) - own).abs()
        assert torch.equal(error.isnan(), own.isnan()), "memory of other tokens was written"
        assert not (error > own.abs() / 15.9 + unit * 2**-9.9).any()

    again = fp8_cache(pages, kv_heads, page_size, dim)
    for token in reversed(range(tokens)):
        one = slice(token, token + 1)
        rope_and_store(q[one], k[one], v[one], cos, sin, page_table, cache_row[one], position[one], *again)
    for mine, other in zip(cache, again, strict=True):
        assert torch.equal(mine.view(torch.uint8), other.view(torch.uint8))


def test_heads_of_zeros_and_of_nan_in_fp8() -> None:
    v = torch.stack([torch.zeros(1, 8), torch.full((1, 8), torch.nan), torch.full((1, 8), 1e-37)])
    cache, at = fp8_cache(3, 1, 1, 8), torch.arange(3)
    rope_and_store(v, v, v, *tables(3, 4), at[None].int(), torch.zeros(3).int(), at, *cache)
    stored = (cache[1].double() * cache[3].double().unsqueeze(-1)).flatten(1)
    assert (stored[0] == 0).all() and stored[1].isnan().all() and (stored[2].abs() < 1e-30).all()


def test_rope_matches_transformers() -> None:
    q, k = random(1, 4, 9, 8, dtype=torch.float64), random(1, 2, 9, 8, dtype=torch.float64, seed=1)
    cos, sin = (x.double() for x in tables(9, 4))
    theirs = apply_rotary_pos_emb(q, k, *(torch.cat([x, x], -1)[None] for x in (cos, sin)))
    stores = [torch.zeros(9, 2, 1, 8, dtype=torch.float64) for _ in range(2)]
    at = torch.arange(9)
    paging = at[None].int(), torch.zeros(9).int(), at
    ours = reference.rope_and_store(q[0].transpose(0, 1), *[k[0].transpose(0, 1)] * 2, cos, sin, *paging, *stores)
    torch.testing.assert_close(ours.transpose(0, 1), theirs[0][0])
    torch.testing.assert_close(stores[0][:, :, 0].transpose(0, 1), theirs[1][0])


# ------------------------------------------------------------------------------------------------ paged_attention


def exact_attention(
    paged: Paged,
    scale: float,
    window: int = 0,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    sequence: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    return reference.paged_attention(*doubles(paged), scale, window, dropout, seed, sequence, layer)


def check_attention(paged: Paged, **options: Any) -> None:
    scale = paged.q.shape[2] ** -0.5
    assert_rounded(paged_attention(*paged, scale=scale, **options), exact_attention(paged, scale, **options), scale=4.0)


def test_attention_matches_torch() -> None:
    """Ragged prefill and grouped heads equal torch's causal attention over plain tensors."""
    paged = make_paged([11], [(0, at) for at in range(11)], 6, 2, 8, page_size=4, dtype=torch.float64)
    pages = paged.page_table[0, :3].long()
    k, v = (x[pages].transpose(0, 1).flatten(1, 2)[:, :11].repeat_interleave(3, 0) for x in (paged.keys, paged.values))
    theirs = scaled_dot_product_attention(paged.q.transpose(0, 1), k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(exact_attention(paged, 0.3), theirs.transpose(0, 1))


@pytest.mark.parametrize("dtype, cache_dtype", [(a, b) for a in DTYPES for b in DTYPES], ids=str)
@pytest.mark.parametrize(
    "heads, kv_heads, dim, page_size", [(1, 1, 2, 1), (4, 4, 6, 3), (9, 3, 64, 16), (8, 1, 80, 16), (8, 2, 96, 5)]
)
def test_attention(heads, kv_heads, dim, page_size, dtype, cache_dtype) -> None:
    lengths = [1, 2, page_size, page_size + 1, 3 * page_size, 40, 7]
    tokens = [*decode(lengths), (-1, 0), (5, 0), (5, 20), (-1, 9)]  # also earlier tokens and unused cache rows
    check_attention(make_paged(lengths, tokens, heads, kv_heads, dim, page_size, dtype, cache_dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads, kv_heads, dim, page_size", [(1, 1, 2, 1), (9, 3, 64, 16), (8, 2, 96, 5)])
def test_attention_in_fp8(heads, kv_heads, dim, page_size, dtype) -> None:
    lengths = [1, page_size, page_size + 1, 40]
    tokens = [*decode(lengths), (-1, 0), (3, 20)]
    paged, scales = in_fp8(make_paged(lengths, tokens, heads, kv_heads, dim, page_size, dtype))
    noise = {"seed": torch.tensor([5]), "sequence": torch.arange(len(tokens)), "layer": 2}
    scale = dim**-0.5
    for options in ({"window": 0, "dropout": 0.0}, {"window": 7, "dropout": 0.3}):
        out = paged_attention(*paged, scale=scale, **options, **noise, **scales)
        exact = reference.paged_attention(*doubles(paged), scale, **options, **noise, **in_doubles(scales))
        assert_rounded(out, exact, scale=4.0)


def test_shared_lengths_change_nothing_on_the_cpu() -> None:
    lengths, hint = [40, 33, 36], torch.tensor([32, 32, 0]).int()
    paged = make_paged(lengths, decode(lengths), 4, 2, 8)
    share(paged.page_table, (paged.keys, paged.values), (0, 1), 2)
    for pages, scales in ((paged, {}), in_fp8(paged)):
        alone, hinted = (paged_attention(*pages, scale=0.3, shared_lengths=x, **scales) for x in (None, hint))
        assert alone.equal(hinted) and not alone.isnan().any()


def test_fp8_keeps_attention_close() -> None:
    """The output is off by 3 % of its norm or less: numbers by 2 % of theirs, and errors average out."""
    paged = make_paged([500], [(0, 499)], 8, 2, 64)
    narrow, scales = in_fp8(paged)
    exact = exact_attention(paged, 0.125)
    out = paged_attention(*narrow, scale=0.125, **scales)
    assert 1e-3 < (out - exact).norm() / exact.norm() < 0.04


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_attention(data) -> None:
    draw = data.draw
    lengths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=5))
    tokens = draw(
        st.lists(st.integers(-1, len(lengths) - 1).flatmap(
            lambda row: st.tuples(st.just(row), st.integers(0, lengths[row] - 1) if row >= 0 else st.just(0))
        ), min_size=1, max_size=12)
    )  # fmt: skip
    group, kv_heads, dim = draw(st.integers(1, 5)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 40))
    paged = make_paged(
        lengths, tokens, group * kv_heads, kv_heads, dim, draw(st.integers(1, 20)), seed=draw(st.integers(0, 99))
    )
    noise = {}
    if draw(st.booleans()):
        words = st.integers(-(2**63), 2**63 - 1)
        sequence = draw(st.lists(words, min_size=len(tokens), max_size=len(tokens)))
        noise = {"dropout": draw(st.floats(0.01, 0.9)), "seed": torch.tensor([draw(words)])}
        noise |= {"sequence": torch.tensor(sequence), "layer": draw(st.integers(0, 60))}
    check_attention(paged, window=draw(st.sampled_from([0, 1, 3, 16, 100])), **noise)


def test_large_scores() -> None:
    """Scores in the thousands, where one key outweighs all others; only their differences matter."""
    paged = make_paged([50, 50], [(0, 49), (1, 49)], 2, 2, 64)
    paged.q.mul_(300)
    exact = exact_attention(paged, 1.0)
    assert (paged_attention(*paged, scale=1.0).double() - exact).abs().max() < 5e-2  # float32 scores of 10,000
    torch.testing.assert_close(
        paged_attention(*paged, scale=0.0).double(), exact_attention(paged, 0.0), atol=1e-6, rtol=0
    )


def test_attention_does_not_depend_on_the_batch() -> None:
    """Results are bitwise equal in any batch and on any number of threads."""
    lengths = [3, 170, 64, 1, 90, 33]
    paged = make_paged(lengths, decode(lengths), 6, 3, 48)
    options = {"scale": 0.2, "dropout": 0.3, "seed": torch.tensor([5]), "layer": 2}
    sequence = torch.arange(6) << 32
    before = torch.get_num_threads()
    whole = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        whole.append(paged_attention(*paged, sequence=sequence, **options))
    torch.set_num_threads(before)
    assert torch.equal(*whole)
    if "cpp" not in IMPLEMENTATIONS:
        return  # the reference adds up as many terms as the longest sequence has tokens
    for rows in ([4, 1], [2], [5, 3, 0, 1, 2, 4]):
        some = Paged(paged.q[rows], *paged[1:4], paged.cache_row[rows], paged.position[rows])
        assert torch.equal(paged_attention(*some, sequence=sequence[rows], **options), whole[0][rows])


def test_dropout_masks_are_independent_and_drop_the_right_share() -> None:
    where = {"seed": 3, "sequence": 1, "position": 900, "layer": 2, "head": 1}

    def mask(**changes: int) -> Tensor:
        at = where | changes
        columns = (torch.tensor([at[name]]) for name in ("seed", "sequence", "position"))
        return reference.dropped(0.3, *columns, at["layer"], 4, 901)[0, at["head"]]

    assert binomtest(int(mask().sum()), 901, 0.3).pvalue > 1e-9
    agreeing = {"seed": 3 + 2**40, "sequence": 1 + 2**40, "position": 901, "layer": 3, "head": 2}
    for name, value in agreeing.items():  # independent masks agree in 0.58 of their entries
        assert binomtest(int((mask() == mask(**{name: value})).sum()), 901, 0.58).pvalue > 1e-9, name
    assert torch.equal(
        mask(layer=1, head=3), reference.dropped(0.3, *(torch.tensor([x]) for x in (3, 1, 900)), 1, 4, 901)[0, 3]
    )


# ------------------------------------------------------------------------------------------------ gather_logits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 8, 33, 576])
def test_gather_logits_reads_only_the_candidates(dim, dtype) -> None:
    hidden, weight = random(5, dim, dtype=dtype), random(90, dim, dtype=dtype, seed=1)
    candidates = select_candidates(random(5, 90, seed=2), make_sampling_tensors(5, alpha=0.05), capacity=40)
    candidates = Candidates(
        candidates.token, candidates.logit, torch.tensor([*candidates.count[:4], -1]).int(), candidates.max
    )
    listed = candidates.token[:4][candidates.token[:4] >= 0].unique()
    unread = torch.ones(90, dtype=torch.bool).index_fill(0, listed.long(), False)
    weight[unread] = torch.nan
    logits = gather_logits(hidden, weight, candidates)
    exact = reference.gather_logits(hidden.double(), weight.double().nan_to_num(), candidates.token, candidates.count)
    assert logits.dtype == torch.float32 and torch.equal(logits.isneginf(), exact.isneginf())
    assert logits[4].isneginf().all() and not logits[:4].isneginf().all()
    finite = ~exact.isneginf()
    assert_rounded(logits[finite], exact[finite].double())


# ------------------------------------------------------------------------------------------- registration, errors


def test_opcheck() -> None:
    paged = make_paged([9, 20], [(0, 8), (1, 3)], 4, 2, 8)
    at = torch.zeros(2, dtype=torch.long)
    ops = torch.ops.cdgen
    checks = [
        (ops.add_rms_norm, (random(3, 8), random(3, 8), random(8), 1e-5)),
        (ops.add_rms_norm, (random(3, 8), None, random(8), 1e-5)),
        (ops.silu_mul, (random(3, 8),)),
        (ops.paged_attention, (*paged, 0.5, 0, 0.2, torch.tensor([1]), at, 0, True, None)),
        (ops.paged_attention, (*paged, 0.5, 0, 0.2, torch.tensor([1]), at, 0, False, at.int())),
    ]
    q, k = random(2, 4, 8), random(2, 2, 8)
    store = torch.zeros(3, 2, 4, 8)
    paging = torch.tensor([[0], [2]]).int(), torch.tensor([0, 1]).int(), at
    checks.append((ops.rope_and_store, (q, k, k, *tables(4, 4), *paging, store, store.clone())))
    for op, arguments in checks:
        torch.library.opcheck(op.default, arguments)
    narrow, scales = in_fp8(paged)
    for op, arguments in (
        (ops.paged_attention_fp8, (*narrow, 0.5, 0, 0.2, torch.tensor([1]), at, 0, False, at.int(), *scales.values())),
        (ops.rope_and_store_fp8, (q, k, k, *tables(4, 4), *paging, *fp8_cache(3, 2, 4, 8))),
    ):
        # The other checks compare the inputs before and after a call, which torch cannot do for 8-bit numbers.
        torch.library.opcheck(op.default, arguments, test_utils=("test_autograd_registration", "test_faketensor"))


def test_mismatched_arguments_raise_an_error() -> None:
    paged = make_paged([9, 20], [(0, 8), (1, 3)], 4, 2, 8)
    x = random(3, 8)
    at, store = torch.zeros(2, dtype=torch.long), torch.zeros(3, 2, 4, 8)
    table, row = torch.tensor([[0], [2]]).int(), torch.tensor([0, 1]).int()
    q, k = random(2, 4, 8), random(2, 2, 8)
    cache, (narrow, scales) = fp8_cache(3, 2, 4, 8), in_fp8(paged)
    for call, message in [
        (lambda: add_rms_norm(x, random(3, 7), random(8), 1e-5), "expected x and residual"),
        (lambda: add_rms_norm(x, None, random(8, dtype=torch.bfloat16), 1e-5), "of the same dtype"),
        (lambda: silu_mul(x.double()), "gate_up: expected"),
        (lambda: silu_mul(x[:, :7]), "even number of columns"),
        (lambda: rope_and_store(q, k, k[:1], *tables(4, 4), table, row, at, store, store), "expected q"),
        (lambda: rope_and_store(q, k, k, *tables(4, 3), table, row, at, store, store), "cos, sin"),
        (lambda: rope_and_store(q, k, k, *tables(4, 4), table, row, at.int(), store, store), "position: expected"),
        (lambda: rope_and_store(q, k, k, *tables(4, 4), table, at, at, store, store), "cache_row: expected"),
        (lambda: rope_and_store(q, k, k, *tables(4, 4), table[0], row, at, store, store), "page_table: expected"),
        (
            lambda: rope_and_store(q, k, k, *tables(4, 4), table, row, at, store.mT.contiguous().mT, store),
            "must be contiguous",
        ),
        (lambda: paged_attention(*paged._replace(q=random(2, 3, 8)), scale=1.0), "not a multiple"),
        (lambda: paged_attention(*paged._replace(cache_row=at), scale=1.0), "cache_row: expected"),
        (lambda: paged_attention(*paged, scale=1.0, dropout=1.0), "must be at least 0"),
        (lambda: paged_attention(*paged, scale=1.0, dropout=0.5), "seed and sequence are required"),
        (lambda: paged_attention(*narrow, scale=1.0), "key_scales: expected contiguous torch.bfloat16"),
        (
            lambda: paged_attention(*paged, scale=1.0, **scales),
            "only float8_e4m3fn pages have scales, got torch.float32",
        ),
        (
            lambda: rope_and_store(q, k, k, *tables(4, 4), table, row, at, *cache[:3]),
            "value_scales: expected .* got NoneType",
        ),
        (
            lambda: rope_and_store(q, k, k, *tables(4, 4), table, row, at, *cache[:3], cache[3].float()),
            r"value_scales: expected contiguous torch.bfloat16 \(3, 2, 4\) on cpu, got torch.float32",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.skipif("cpp" not in IMPLEMENTATIONS, reason=NO_CPP)
def test_indices_out_of_range_raise_an_error_before_memory_is_touched() -> None:
    paged = make_paged([9, 20], [(0, 8), (1, 3)], 4, 2, 8)
    q, k, store = random(1, 4, 8), random(1, 2, 8), torch.zeros(3, 2, 4, 8)
    one, table, row = torch.tensor([0]), torch.tensor([[0, -1]]).int(), torch.tensor([0]).int()
    for call in (
        lambda: paged_attention(*paged._replace(cache_row=torch.tensor([0, 2]).int()), scale=1.0),
        lambda: paged_attention(*paged._replace(position=torch.tensor([0, 10_000])), scale=1.0),
        lambda: paged_attention(*paged._replace(position=torch.tensor([16, 0])), scale=1.0),  # there is no such page
        lambda: rope_and_store(q, k, k, *tables(4, 4), table, row, one + 4, store, store),
        lambda: rope_and_store(q, k, k, *tables(9, 4), table, row, one + 8, store, store),
        lambda: rope_and_store(q, k, k, *tables(9, 4), table, row, one + 4, store, store),  # there is no such page
        lambda: rope_and_store(q, k, k, *tables(4, 4), table + 3, row, one, store, store),
        lambda: rope_and_store(q, k, k, *tables(4, 4), table, row + 1, one, store, store),
    ):
        with pytest.raises(RuntimeError, match=r"out of range|outside the page table|no page"):
            call()


def test_negative_indices_in_fp8_are_not_counted_from_the_end() -> None:
    """They would write to pages of other sequences: the op for fp8 pages is torch's on the CPU."""
    k, cache, row = random(1, 2, 8), fp8_cache(3, 2, 4, 8), torch.tensor([0]).int()
    before = [x.view(torch.uint8).clone() for x in cache]
    for pages, at in (([0, -1], 4), ([-2, 0], 0), ([0, 1], -1)):
        with pytest.raises(IndexError, match="an index is negative"):
            rope_and_store(k, k, k, *tables(9, 4), torch.tensor([pages]).int(), row, torch.tensor([at]), *cache)
    assert all(torch.equal(x.view(torch.uint8), old) for x, old in zip(cache, before, strict=True))
