"""What a kernel's results are compared with before its time counts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.ops.cases import Case
from benchmarks.ops.op import Op

# A float32 score and the float64 one disagree on a winner where two noisy scores lie within some 1e-5 of each other.
MISMATCHES = 1e-3  # share of the compared rows, rounded: one row from 501 on
FACTOR = 2  # times what torch itself loses in the same dtype
ROUNDING = 1e-6  # share of the greatest value, for outputs in which torch loses nothing
ROWS = 1024  # compared where results are integers ...
CALLS = {"cuda": 8, "cpu": 2}  # ... in no more calls than this


@dataclass
class Checked:
    """The outcome of a comparison.

    Attributes:
        mismatches: rows whose integers are not all the reference's, of `rows`.
        errors: {float output: {"own": greatest error, "torch": torch's own, "allowed": bound}}
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
        """Fields of a result record."""
        found = {"rows": self.rows, "mismatches": self.mismatches, "errors": self.errors}
        return found | {"status": "ok"} if self.ok else found | {"status": "wrong", "failure": self.difference()}

    def difference(self) -> str:
        parts = [f"{self.mismatches} of {self.rows} rows differ"] if self.mismatches else []
        parts += [
            f"{name} off by {error['own']:.1e} (torch {error['torch']:.1e}, allowed {error['allowed']:.1e})"
            for name, error in self.errors.items()
            if not error["own"] <= error["allowed"]
        ]
        return "; ".join(parts)


def runnable(op: Op, device: torch.device) -> Callable:
    """The op's implementation on a GPU; on the CPU its definition, because Triton kernels do not run there."""
    return op.fused if device.type == "cuda" else op.plain


def greatest_error(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Greatest difference between two tensors of one shape; infinity if only one is NaN or infinities differ."""
    x, truth = x.double(), truth.double()
    same = (x == truth) | (x.isnan() & truth.isnan())
    difference = torch.where(same, 0.0, (x - truth).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    return difference.amax().item() if x.numel() else 0.0


def check(case: Case, device: torch.device, fused: Callable | None = None) -> Checked:
    """Compare the case's op with its definition; `fused` stands in for the op's own implementation."""
    fused = fused or runnable(case.op, device)
    checked = Checked(str(case))
    for seed in range(CALLS[device.type]):
        inputs = case.make(device, seed)
        truth = case.op.plain(*inputs)
        usual = case.op.torch_floats(truth, *inputs)
        outputs = fused(*inputs)  # last, since it may work in place
        whole = [name for name, x in outputs.items() if not x.is_floating_point()]
        agree = torch.ones(case.batch, dtype=torch.bool, device=device)
        for name in whole:
            agree &= (outputs[name] == truth[name]).reshape(case.batch, -1).all(1)
        checked.rows += case.batch
        checked.mismatches += case.batch - int(agree.sum())
        for name in outputs.keys() - whole:
            values = (outputs[name], truth[name], usual[name])
            if values[0].dim() and len(values[0]) == case.batch:  # floats of another token are other floats
                values = tuple(x[agree] for x in values)
            _merge(checked.errors, name, *values)
        if not whole or checked.rows >= ROWS:
            break
    return checked


def _merge(errors: dict, name: str, own: torch.Tensor, truth: torch.Tensor, usual: torch.Tensor) -> None:
    finite = truth.double()[truth.isfinite()]
    size = finite.abs().amax().item() if finite.numel() else 0.0
    now = {"own": greatest_error(own, truth), "torch": greatest_error(usual, truth)}
    now["allowed"] = FACTOR * now["torch"] + ROUNDING * size
    before = errors.setdefault(name, now)
    if now["own"] - now["allowed"] > before["own"] - before["allowed"]:
        errors[name] = now
