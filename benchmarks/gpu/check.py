"""Compare the results of a kernel with those of the reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.ops.cases import Case
from benchmarks.ops.op import Op, Outputs

# float32 and float64 scores may have different winners if the best two noisy scores are within about 1e-5.
MISMATCHES = 1e-3  # allowed share of the compared rows, rounded to whole rows: none of 500, one of 501
FACTOR = 2  # allowed error, as a multiple of torch's own error in the same dtype
ROUNDING = 1e-6  # error allowed in addition, as a share of the largest value
ROWS = 1024  # rows to compare if results are integers
CALLS = {"cuda": 8, "cpu": 2}  # most calls that are made to reach ROWS, by device


@dataclass
class Checked:
    """The outcome of a comparison.

    Attributes:
        rows: number of compared rows.
        mismatches: number of rows in which an integer differs from the reference.
        errors: {float output: {"own": largest error, "torch": torch's largest error, "allowed": bound}}
    """

    name: str
    rows: int = 0
    mismatches: int = 0
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        few = self.mismatches <= round(MISMATCHES * self.rows)
        return few and all(error["own"] <= error["allowed"] for error in self.errors.values())

    def as_result(self) -> dict[str, object]:
        """Return the fields of a result record."""
        found = {"rows": self.rows, "mismatches": self.mismatches, "errors": self.errors}
        return found | {"status": "ok"} if self.ok else found | {"status": "wrong", "failure": self.difference()}

    def difference(self) -> str:
        """Describe what differs."""
        parts = [f"{self.mismatches} of {self.rows} rows differ"] if self.mismatches else []
        parts += [
            f"{name} off by {error['own']:.1e} (torch {error['torch']:.1e}, allowed {error['allowed']:.1e})"
            for name, error in self.errors.items()
            if not error["own"] <= error["allowed"]
        ]
        return "; ".join(parts)


def runnable(op: Op, device: torch.device) -> Callable[..., Outputs]:
    """Return the op's kernel for a GPU, and its reference for the CPU, on which Triton kernels do not run."""
    return op.fused if device.type == "cuda" else op.reference


def greatest_error(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the largest difference between two tensors of equal shape.

    It is infinite if a value is NaN or infinite in one of them only.
    """
    x, truth = x.double(), truth.double()
    same = (x == truth) | (x.isnan() & truth.isnan())
    difference = torch.where(same, 0.0, (x - truth).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    return difference.amax().item() if x.numel() else 0.0


def check(case: Case, device: torch.device, fused: Callable[..., Outputs] | None = None) -> Checked:
    """Compare the case's op, or `fused` if it is given, with the reference."""
    fused = fused or runnable(case.op, device)
    checked = Checked(str(case))
    for seed in range(CALLS[device.type]):
        inputs = case.make(device, seed)
        truth = case.op.reference(*inputs)
        by_torch = case.op.torch_floats(truth, *inputs)
        outputs = fused(*inputs)  # last, because it may work in place
        integers = [name for name, x in outputs.items() if not x.is_floating_point()]
        agree = torch.ones(case.batch, dtype=torch.bool, device=device)
        for name in integers:
            agree &= (outputs[name] == truth[name]).reshape(case.batch, -1).all(1)
        checked.rows += case.batch
        checked.mismatches += case.batch - int(agree.sum())
        for name in outputs.keys() - integers:
            own, expected, torchs = outputs[name], truth[name], by_torch[name]
            if own.dim() and len(own) == case.batch:  # floats of different tokens cannot be compared
                own, expected, torchs = own[agree], expected[agree], torchs[agree]
            _merge(checked.errors, name, own, expected, torchs)
        if not integers or checked.rows >= ROWS:
            break
    return checked


def _merge(
    errors: dict[str, dict[str, float]], name: str, own: torch.Tensor, truth: torch.Tensor, by_torch: torch.Tensor
) -> None:
    """Keep the errors of one output if they exceed the bound by more than those of earlier calls."""
    finite = truth.double()[truth.isfinite()]
    size = finite.abs().amax().item() if finite.numel() else 0.0
    now = {"own": greatest_error(own, truth), "torch": greatest_error(by_torch, truth)}
    now["allowed"] = FACTOR * now["torch"] + ROUNDING * size
    before = errors.setdefault(name, now)
    if now["own"] - now["allowed"] > before["own"] - before["allowed"]:
        errors[name] = now
