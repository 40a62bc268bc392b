"""Check that the product of `select_candidates_linear` is the same in every call: a result that varies is a race."""

from unittest import mock

import torch

from benchmarks.gpu.check import Checked
from benchmarks.gpu.context import Context
from benchmarks.ops.linear import output_layer

REPEATS = 100
VOCAB_SIZE = 32_000
SHAPES = ((64, 768), (128, 768), (512, 768), (128, 4096))  # (batch, width): matrix units work on warp groups
DRY_SHAPE = (3, 16)


def check_repeats(device: torch.device, batch: int, width: int) -> Checked:
    """Count the rows of maxima that differ from those of the first call, over REPEATS calls."""
    repeats, vocab_size, maxima = REPEATS, VOCAB_SIZE, triton_maxima
    if device.type == "cpu":
        repeats, vocab_size, maxima = 3, 200, torch_maxima
    hidden, weight = output_layer(batch, vocab_size, torch.bfloat16, device, 0, width)
    first, checked = maxima(hidden, weight), Checked(f"repeated product [{batch}, {width}]")
    for _ in range(repeats):
        checked.rows += batch
        checked.mismatches += int((maxima(hidden, weight) != first).any(1).sum())
    if checked.mismatches:
        checked.errors["repeats"] = {"own": 1.0, "torch": 0.0, "allowed": 0.0}  # no row may differ
    return checked


def triton_maxima(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the largest logit of every chunk of tokens, float32 [B, chunks]."""
    from cdgen_kernels.triton import linear as triton_linear

    return triton_linear.chunk_maxima(hidden, weight, weight.shape[0])


def torch_maxima(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Stand in for :func:`triton_maxima` in a dry run."""
    return (hidden @ weight.T).float()


def repeats_job(context: Context) -> None:
    """Check the product.

    If this version of Triton lacks the fence for pipelined copies, the product does not use them. It is then run with
    them as well, for information.
    """
    from cdgen_kernels.triton import linear as triton_linear

    shapes = (DRY_SHAPE,) if context.dry else SHAPES
    cases = {f"repeated product [{batch}, {width}]": (batch, width) for batch, width in shapes}
    for name, shape in context.each(cases):
        with context.case(name) as found:
            found |= check_repeats(context.device, *shape).as_result()
    if triton_linear.HAS_FENCE:
        return
    with mock.patch.object(triton_linear, "HAS_FENCE", True):
        for name, shape in cases.items():
            checked = check_repeats(context.device, *shape)
            context.record("note", line=f"{name}, without a fence: {checked.mismatches} of {checked.rows} rows vary")
