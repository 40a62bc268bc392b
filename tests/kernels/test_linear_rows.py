"""Products of a few rows (`torch.ops.cdgen.linear_rows`): C++ and the reference against float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from cdgen_kernels import reference
from tests.helpers.implementations import IMPLEMENTATIONS, NO_CPP

DTYPES = (torch.float32, torch.bfloat16)
op = torch.ops.cdgen.linear_rows
needs_cpp = pytest.mark.skipif("cpp" not in IMPLEMENTATIONS, reason=NO_CPP)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(implementation: str, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return (reference.linear_rows if implementation == "reference" else op)(x, weights, biases)


def assert_rounded(ours: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Allow half a unit in the last place of the result's dtype, and the rounding of a sum in float32."""
    bias = None if bias is None else bias.double()
    exact = linear(x.double(), weight.double(), bias)
    magnitude = linear(x.double().abs(), weight.double().abs(), bias if bias is None else bias.abs())
    allowed = 0.51 * torch.finfo(ours.dtype).eps * exact.abs() + (4 + x.shape[1] ** 0.5) * 2**-24 * magnitude
    assert ours.shape == exact.shape and ours.dtype == x.dtype
    assert ((ours.double() - exact).abs() <= allowed).all(), (ours.double() - exact).abs().max()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("dim", [1, 7, 8, 24, 33, 100, 576])
def test_outputs(dim, rows, bias, dtype, implementation) -> None:
    sizes = (24, 1, 7, 9)
    x = random(rows, dim, dtype=dtype)
    weights = [random(size, dim, dtype=dtype, seed=size) for size in sizes]
    biases = [random(size, dtype=dtype, seed=-size) for size in sizes] if bias else []
    found = run(implementation, x, weights, biases)
    assert_rounded(found, x, torch.cat(weights), torch.cat(biases) if bias else None)


@needs_cpp
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_any_batch_and_place(dtype) -> None:
    """Neither the other rows, nor the place of an output, nor the strides matter."""
    x, weight = random(5, 100, dtype=dtype), random(20, 100, dtype=dtype, seed=1)
    whole = op(x, [weight], [])
    for row in range(5):
        assert torch.equal(op(x[row : row + 1], [weight], [])[0], whole[row])
    assert torch.equal(op(x, [weight[:3], weight[3:]], []), whole)
    assert torch.equal(op(x.repeat(1, 2)[:, :100], [weight.repeat(1, 3)[:, 100:200]], []), whole)
    assert torch.equal(op(x[::2], [weight[::3]], []), whole[::2, ::3])


@needs_cpp
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2])
def test_threads_do_not_change_bits(rows, dtype) -> None:
    """The layers have enough weights for several threads, whose parts end in the middle of a layer and of a block."""
    x = random(rows, 600, dtype=dtype)
    weights = [random(size, 600, dtype=dtype, seed=size) for size in (501, 330, 77)]
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(op(x, weights, []))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert_rounded(found[0], x, torch.cat(weights), None)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at", [3, 65])  # in a vector, and after the last whole one
def test_special_numbers_propagate(at, dtype, implementation) -> None:
    x, weight, bias = random(2, 67, dtype=dtype), random(9, 67, dtype=dtype), torch.zeros(9, dtype=dtype)
    x[:, at] = 1
    weight[1, at], weight[2, at], weight[8, at], bias[4] = torch.nan, torch.inf, -torch.inf, torch.nan
    found = run(implementation, x, [weight], [bias])
    assert found[:, [1, 4]].isnan().all()
    assert (found[:, 2] == torch.inf).all() and (found[:, 8] == -torch.inf).all()
    assert found[:, [0, 3, 5, 6, 7]].isfinite().all()
    x[1, at] = torch.nan
    found = run(implementation, x, [weight], [])
    assert found[1].isnan().all() and found[0, [0, 3, 4, 5, 6, 7]].isfinite().all()


def test_opcheck() -> None:
    weights, biases = [random(3, 10), random(9, 10)], [random(3), random(9)]
    for added in (biases, []):
        torch.library.opcheck(op.default, (random(2, 10), weights, added))


@needs_cpp
def test_mismatched_arguments_raise_an_error() -> None:
    x, weight, bias = random(2, 10), random(3, 10), random(3)
    for arguments, message in (
        ((x.half(), [weight.half()], []), "x must be"),
        ((x[0], [weight], []), "x must be"),
        ((random(10, 2).T, [weight], []), "x must be"),
        ((x, [weight.bfloat16()], []), "weights must be"),
        ((x, [random(3, 9)], []), "weights must be"),
        ((x, [random(10, 3).T], []), "weights must be"),
        ((x, [weight, weight], [bias]), "one for each weight"),
        ((x, [weight], [random(4)]), "biases must be"),
        ((x, [weight], [random(6)[::2]]), "biases must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
