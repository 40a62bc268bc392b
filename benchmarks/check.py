"""What a kernel's results are held against before its time counts."""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from benchmarks.cases import Case
from benchmarks.sampling_ops import SAMPLING_OPS
from cdgen_kernels import ops, reference
from cdgen_kernels.triton_noise import gumbel, philox_word

# A float32 score and the float64 one disagree on a winner where two noisy scores lie within some 1e-5 of each other.
MISMATCHES = 1e-3  # of the rows compared, rounded down
FACTOR = 2  # times what torch itself loses in the same dtype
ROUNDING = 1e-6  # of the greatest value, where torch loses nothing
ROWS = 1024  # compared where results are integers ...
CALLS = 8  # ... in no more calls than this


@dataclass
class Checked:
    name: str
    rows: int
    mismatches: int  # rows whose integers are not all the reference's
    errors: dict  # float output -> {"own": greatest error, "torch": torch's own, "allowed": bound}
    failure: str = ""  # why there is nothing to compare

    @property
    def ok(self):
        return (
            not self.failure
            and self.mismatches <= int(MISMATCHES * self.rows)
            and all(error["own"] <= error["allowed"] for error in self.errors.values())
        )


def in_one_line(error):
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def attempt(name, checking, *arguments):
    """What checking(*arguments) finds; an exception is a finding too, so that the rest of a run still happens."""
    try:
        return checking(*arguments)
    except Exception as error:
        return Checked(name, 0, 0, {}, in_one_line(error))


def greatest_error(x, truth):
    """Of any two tensors of one shape; infinity where only one is NaN, or they are unlike infinities."""
    x, truth = x.double(), truth.double()
    same = (x == truth) | (x.isnan() & truth.isnan())
    return (
        torch.where(same, 0.0, (x - truth).abs()).nan_to_num(nan=math.inf, posinf=math.inf).amax().item()
        if x.numel()
        else 0.0
    )


def check(case, device, fused=None):
    """Compare the case's op with its definition; `fused` stands in for the op's own implementation."""
    fused = fused or case.op.fused
    checked = Checked(str(case), 0, 0, {})
    for seed in range(CALLS):
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
            merge(checked.errors, name, *values)
        if not whole or checked.rows >= ROWS:
            break
    return checked


def merge(errors, name, own, truth, usual):
    finite = truth.double()[truth.isfinite()]
    size = finite.abs().amax().item() if finite.numel() else 0.0
    now = {"own": greatest_error(own, truth), "torch": greatest_error(usual, truth)}
    now["allowed"] = FACTOR * now["torch"] + ROUNDING * size
    before = errors.setdefault(name, now)
    if now["own"] - now["allowed"] > before["own"] - before["allowed"]:
        errors[name] = now


# --------------------------------------------------------------------------------------------------- the hardware


@triton.jit
def noise_kernel(seed, sequence, position, words, noise, n, N: tl.constexpr):
    token = tl.program_id(0) * N + tl.arange(0, N)
    word = philox_word(token, tl.load(seed), tl.load(sequence), tl.load(position))
    tl.store(words + token, word.to(tl.int64), mask=token < n)
    tl.store(noise + token, gumbel(word), mask=token < n)


def check_noise(device, tokens=1_000_003):
    """Whether this device makes the very random words of the reference, and the Gumbel noise of them to 1e-5."""
    key, text, place = (torch.tensor([x], device=device) for x in (0x123456789ABCDEF0, -2, 2**31 + 5))
    words = torch.empty(tokens, dtype=torch.int64, device=device)
    noise = torch.empty(tokens, device=device)
    grid = (triton.cdiv(tokens, 1024),)
    noise_kernel[grid](key, text, place, words, noise, tokens, N=1024, num_warps=4, enable_fp_fusion=False)
    wanted = reference.philox(key, text, place, tokens)[0]
    checked = Checked(f"noise of {tokens} tokens", tokens, int((words != wanted).sum()), {})
    error = greatest_error(noise, reference.gumbel(wanted))
    checked.errors["noise"] = {"own": error, "torch": 0.0, "allowed": 1e-5 if checked.mismatches == 0 else -1.0}
    return checked


def check_graph():
    """Capture the public op in a CUDA graph, and replay it at other positions."""
    case = Case(SAMPLING_OPS[0], torch.bfloat16, 128, 32_000)
    good, bad, rows = case.make("cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, which a capture cannot
        ops.sample(good, bad, rows)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token = ops.sample(good, bad, rows).token
    checked = Checked("CUDA graph of sample, replayed at other positions", 0, 0, {})
    seen = []
    for position in range(8):
        rows.position.fill_(position)
        graph.replay()
        seen.append(token.clone())
        checked.rows += case.batch
        checked.mismatches += int((token != case.op.plain(good, bad, rows)["token"]).sum())
    if all(x.equal(seen[0]) for x in seen):  # the position was captured as a constant
        checked.mismatches = checked.rows
    return checked
