"""The part `training`: train the paper's GOOD on random tokens, and time the loss of the output layer."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.generation import synchronize
from benchmarks.gpu.check import check
from benchmarks.gpu.context import Context
from benchmarks.gpu.generate import Memory
from benchmarks.gpu.timing import Bench, runnable_variants
from benchmarks.ops import linear as linear_ops
from benchmarks.ops.cases import OPS, Case
from benchmarks.ops.op import Inputs, Outputs
from cdgen.bench.timing import Call, quartiles
from cdgen.training.config import PRESETS
from cdgen.training.model import SummedLoss, operations_per_token, parameter_groups, peak_operations, use_liger

PRESET, VOCAB_SIZE, BLOCK = "paper", 32_000, 1024
BATCH, STEPS, WARM_UP = 64, 6, 2  # blocks per step, timed steps, untimed steps before them
DRY_PRESET, DRY_VOCAB_SIZE, DRY_BLOCK = "tiny", 500, 16
CHUNK_ROWS = (768, 2048, 4096)
ROWS = 8192  # tokens of the timed loss


class TrainingLoop:
    """The steps of cdgen.training.trainer, in bfloat16, without files."""

    def __init__(self, context: Context, micro: int) -> None:
        preset, self.vocab_size, self.block = PRESET, VOCAB_SIZE, BLOCK
        self.batch, self.micro, self.device = BATCH, micro, context.device
        if context.dry:
            preset, self.vocab_size, self.block = DRY_PRESET, DRY_VOCAB_SIZE, DRY_BLOCK
            self.batch, self.micro = 4, 2
        torch.manual_seed(0)
        config = LlamaConfig(
            **PRESETS[preset], vocab_size=self.vocab_size, max_position_embeddings=2048, tie_word_embeddings=False
        )
        with context.device:
            self.lm = LlamaForCausalLM(config).train()
        if not context.dry:
            use_liger(self.lm)
        self.accelerator = Accelerator(cpu=context.dry, mixed_precision="bf16")
        optimizer = torch.optim.AdamW(parameter_groups(self.lm, 0.1), lr=1e-4, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(SummedLoss(self.lm), optimizer)
        self.blocks = torch.randint(self.vocab_size, (self.batch, self.block), device=context.device)

    @property
    def tokens(self) -> int:
        """Number of tokens per step."""
        return self.batch * self.block

    def step(self) -> float:
        """Make one step and return the mean loss."""
        predicted, total = self.batch * (self.block - 1), torch.zeros((), device=self.device)
        for part in self.blocks.split(self.micro):
            loss = self.model(part) / predicted
            self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.item()


def steps_job(context: Context, micro: int) -> None:
    """Time steps with micro batches of `micro` blocks."""
    name = f"micro batch {micro}"
    context.plan([name])
    with context.case(name) as found:
        limits, memory = Bench(context).limits, Memory(context.device)  # the timer and its buffer are freed here
        memory.reset()
        loop = TrainingLoop(context, micro)
        losses, times = [], []
        for _ in range(WARM_UP + (1 if context.dry else STEPS)):
            synchronize(context.device)
            start = time.perf_counter()
            losses.append(loop.step())
            times.append(time.perf_counter() - start)
        rate = loop.tokens / statistics.median(times[WARM_UP:])
        operations = operations_per_token(loop.lm, loop.block) * rate
        peak = peak_operations(context.device, torch.bfloat16)
        measured = limits["bfloat16, FLOP/s"]
        found |= {
            "losses": losses,
            "seconds": times,
            "tokens/s": rate,
            "FLOP/s": operations,
            "peak bytes": memory.peak(),
        }
        found |= {"share of data sheet": peak and operations / peak, "share of matmul": operations / measured}
        if not losses[-1] < losses[0]:  # every step uses the same blocks
            found |= {"status": "wrong", "failure": f"the loss does not fall: {losses}"}
        sheet = f", MFU {operations / peak:.1%} of the data sheet" if peak else ""
        found["line"] = f"{name}: {rate:,.0f} tokens/s{sheet}, {operations / measured:.1%} of measured products"


def added_bytes(call: Call, inputs: Inputs, memory: Memory) -> int | None:
    """Return how many bytes a call adds at its peak; None on the CPU."""
    before = memory.allocated()
    memory.reset()
    call(*inputs)
    peak = memory.peak()
    return None if before is None or peak is None else peak - before


def loss_job(context: Context) -> None:
    """Check and time linear_cross_entropy with chunks of several sizes, and the losses of torch and Liger."""
    op = next(op for op in OPS if op.name == "linear_cross_entropy")
    case = Case(op, torch.bfloat16, *((8, 300) if context.dry else (ROWS, VOCAB_SIZE)))
    chunks = {f"chunk_rows {rows}": partial(linear_ops.cross_entropy_fused, chunk_rows=rows) for rows in CHUNK_ROWS}
    context.plan([*chunks, str(case)])
    correct = {}
    for name, call in chunks.items():
        with context.case(name) as found:
            found |= check(case, context.device, call).as_result()
        if found["status"] == "ok":
            correct[name] = call
    with context.case(str(case)) as found:
        bench, inputs = Bench(context), case.make(context.device)
        rivals = {"F.cross_entropy": op.eager, "F.cross_entropy, 16-bit logits": loss_on_16_bit_logits, **op.rivals}
        running, absent = runnable_variants({"fused": op.fused, **correct, **rivals}, inputs, context.device)
        times = bench.timer.time(running, [inputs], runs=10)
        found |= bench.figures(case, times, inputs) | {"absent": absent}
        memory = Memory(context.device)
        found["peak bytes"] = {name: added_bytes(call, inputs, memory) for name, call in running.items()}
    if found["status"] != "ok":
        return
    for name, seconds in times.items():
        used = found["peak bytes"][name]
        shown = "" if used is None else f", {used / 1e9:.2f} GB"
        context.record("note", line=f"loss, {name}: {quartiles(seconds)[1] * 1e3:.2f} ms{shown}")


def loss_on_16_bit_logits(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Outputs:
    """Compute the loss in the simplest way, with logits in the dtype of the hidden states."""
    return linear_ops.gradients(functional.cross_entropy(hidden @ weight.T, target), hidden, weight)


JOBS: dict[str, Callable[[Context], None]] = {
    "micro_8": partial(steps_job, micro=8),
    "micro_32": partial(steps_job, micro=32),
    "loss": loss_job,
}
