"""Which launches share a compiled kernel, according to Triton's own binder. Nothing is compiled or run."""

import os
from typing import Any

import pytest
import torch

from cdgen_kernels import codes, make_sampling_tensors

triton = pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import make_backend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

from cdgen_kernels.triton import attention as triton_attention  # noqa: E402
from cdgen_kernels.triton import candidates as triton_candidates  # noqa: E402
from cdgen_kernels.triton import cross_entropy as triton_cross_entropy  # noqa: E402
from cdgen_kernels.triton import layers as triton_layers  # noqa: E402
from cdgen_kernels.triton import linear as triton_linear  # noqa: E402
from cdgen_kernels.triton import prefill_attention, shared_attention  # noqa: E402
from cdgen_kernels.triton import sample as triton_sample  # noqa: E402
from tools.ptx_sim import intercept  # noqa: E402
from tools.ptx_sim.compile import specialise  # noqa: E402

B, V, D, C = 6, 96, 64, 16
MODULES = (
    prefill_attention,
    shared_attention,
    triton_attention,
    triton_cross_entropy,
    triton_candidates,
    triton_layers,
    triton_linear,
    triton_sample,
)
KERNELS = {value for module in MODULES for name, value in vars(module).items() if name.endswith("_kernel")}


def record(shift: int) -> list[tuple[triton.JITFunction, dict[str, Any]]]:
    """Launch every kernel and return (function, arguments by name) of each.

    Tensors with one element, one list of bans or one list of pages per row begin `shift` elements into their storage.
    """

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(x.numel() + shift)[shift:].view(x.shape).copy_(x)

    shapes = [(B, V), (B, V), (B, D), (V, D), (B, 2, D)]
    logits, bad, hidden, weight, heads = (torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes)
    sampling = type(make_sampling_tensors(B))(*map(shifted, make_sampling_tensors(B)))
    banned, place = (shifted(torch.zeros(shape, dtype=torch.int64)) for shape in [(B, 3), B])
    row, table = (shifted(torch.zeros(shape, dtype=torch.int32)) for shape in [B, (B, 3)])
    angles, cache = torch.zeros(8, D // 2), torch.zeros(2, 9, 2, 16, D)
    noted = []
    with intercept(lambda function, grid, arguments, options: noted.append((function, arguments))):
        triton_sample.contrastive_sample(logits, bad, sampling, banned, V, codes.MASK, 0.0, True)
        found = triton_candidates.select_candidates(logits, sampling.margin, banned, V, C)
        found = found._replace(count=shifted(found.count), max=shifted(found.max))
        triton_candidates.sample_candidates(found, bad, sampling, V, False, True)
        triton_linear.select_candidates_linear(hidden, weight, sampling.margin, banned, V, C)
        triton_linear.gather_logits(hidden, weight, found.token, found.count)
        triton_cross_entropy.softmax_gradient(logits, place, -100, True)
        triton_layers.add_rms_norm(hidden, hidden, weight[0], 1e-5)
        triton_layers.silu_mul(hidden)
        triton_layers.rope_and_store(heads, heads, heads, angles, angles, table, row, place, *cache)
        noise = (0.1, sampling.seed[:1], sampling.sequence, 3)
        triton_attention.paged_attention(heads, *cache, table, row, place, 1.0, 0, *noise)
        cache = cache.bfloat16()
        triton_attention.paged_attention(heads, *cache, table, row, place, 1.0, 0, 0.0, *noise[1:], True)
        triton_attention.paged_attention(heads, *cache, table, row, place, 1.0, 0, 0.0, *noise[1:], False, row)
    return noted


def bind(function: triton.JITFunction, arguments: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return {argument: (type, attribute or value)}, the key under which Triton's launcher stores compiled kernels."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(function.signature, function.params, backend)
    return dict(zip(function.arg_names, binder(**arguments)[1], strict=True))


@pytest.mark.parametrize("shift", [1, 3])
def test_tensors_with_one_element_per_row_may_begin_anywhere(shift: int) -> None:
    """Their addresses may be multiples of only 4 or 8, like every other row of an [n, odd] tensor."""
    aligned, odd = record(0), record(shift)
    assert {function for function, _ in aligned} == KERNELS
    for (function, arguments), (_, others) in zip(aligned, odd, strict=True):
        assert bind(function, arguments) == bind(function, others), function.__name__
        assert specialise(function, arguments) == specialise(function, others), function.__name__


@pytest.mark.parametrize("shift", [0, 1])
def test_specialise_agrees_with_tritons_launcher(shift: int) -> None:
    for function, arguments in record(shift):
        types, constants, divisible = specialise(function, arguments)
        for name, (type_, attribute) in bind(function, arguments).items():
            if name in constants:
                assert type_ == "constexpr" and attribute == constants[name]
            elif type_ == "constexpr":
                assert arguments[name] == 1  # specialise keeps such an integer as an argument
            else:
                assert types[name] == type_, (function.__name__, name)
                assert (name in divisible) == ("D" in (attribute or "")), (function.__name__, name)
