"""The part `training`: steps of the paper's GOOD on random tokens, and the loss of the output layer."""

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
from benchmarks.gpu.cold import quartiles
from benchmarks.gpu.context import Context
from benchmarks.gpu.generate import Memory
from benchmarks.gpu.timing import Bench, able
from benchmarks.ops import linear as linear_ops
from benchmarks.ops.cases import OPS, Case
from cdgen.training.config import PRESETS
from cdgen.training.model import SummedLoss, operations_per_token, parameter_groups, peak_operations, use_liger

PRESET, VOCAB_SIZE, BLOCK = "paper", 32_000, 1024
BATCH, STEPS, WARM_UP = 64, 6, 2  # blocks per step; timed steps; steps before them
DRY_PRESET, DRY_VOCAB_SIZE, DRY_BLOCK = "tiny", 500, 16
CHUNK_ROWS = (768, 2048, 4096)
ROWS = 8192  # tokens of the timed loss


class Loop:
    """What cdgen.training.trainer does in a step, in bfloat16, without files."""

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
        """Tokens of a step."""
        return self.batch * self.block

    def step(self) -> float:
        """Returns the mean loss."""
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
    name = f"micro batch {micro}"
    context.plan([name])
    with context.case(name) as found:
        limits, memory = Bench(context).limits, Memory(context.device)  # the timer's buffer is freed
        memory.reset()
        loop = Loop(context, micro)
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
        found |= {"of data sheet": peak and operations / peak, "of matmul": operations / measured}
        if not losses[-1] < losses[0]:  # the same blocks again and again
            found |= {"status": "wrong", "failure": f"the loss does not fall: {losses}"}
        sheet = f", MFU {operations / peak:.1%} of the data sheet" if peak else ""
        found["line"] = f"{name}: {rate:,.0f} tokens/s{sheet}, {operations / measured:.1%} of measured products"


def peak_of(call: Callable, inputs: tuple, memory: Memory) -> int | None:
    """Bytes that a call adds at its highest."""
    before = memory.allocated()
    memory.reset()
    call(*inputs)
    return None if before is None else memory.peak() - before


def loss_job(context: Context) -> None:
    """linear_cross_entropy in chunks of several sizes, checked, beside torch's and Liger's."""
    op = next(op for op in OPS if op.name == "linear_cross_entropy")
    case = Case(op, torch.bfloat16, *((8, 300) if context.dry else (ROWS, VOCAB_SIZE)))
    chunks = {f"chunk_rows {rows}": partial(linear_ops.training_fused, chunk_rows=rows) for rows in CHUNK_ROWS}
    context.plan([*chunks, str(case)])
    right = {}
    for name, call in chunks.items():
        with context.case(name) as found:
            found |= check(case, context.device, call).as_result()
        if found["status"] == "ok":
            right[name] = call
    with context.case(str(case)) as found:
        bench, inputs = Bench(context), case.make(context.device)
        rivals = {"F.cross_entropy": op.eager, "F.cross_entropy, 16-bit logits": narrow_loss, **op.rivals}
        running, absent = able({"fused": op.fused, **right, **rivals}, inputs, context.device)
        times = bench.timer.time(running, [inputs], runs=10)
        found |= bench.figures(case, times, inputs) | {"absent": absent}
        memory = Memory(context.device)
        found["peak bytes"] = {name: peak_of(call, inputs, memory) for name, call in running.items()}
    if found["status"] != "ok":
        return
    for name, seconds in times.items():
        used = found["peak bytes"][name]
        shown = "" if used is None else f", {used / 1e9:.2f} GB"
        context.record("note", line=f"loss, {name}: {quartiles(seconds)[1] * 1e3:.2f} ms{shown}")


def narrow_loss(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The least that one would write: logits stay in the dtype of the states."""
    return linear_ops.gradients(functional.cross_entropy(hidden @ weight.T, target), hidden, weight)


JOBS: dict[str, Callable[[Context], None]] = {
    "micro_8": partial(steps_job, micro=8),
    "micro_32": partial(steps_job, micro=32),
    "loss": loss_job,
}
