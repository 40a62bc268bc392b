"""The part `kernels`: time every op with cold caches and compare it with its rivals and the limits of the card."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.timing import Bench
from benchmarks.ops.cases import OPS, Case

BY_NAME = {op.name: op for op in OPS}
Table = dict[str, tuple[tuple[int, int], ...]]  # name of an op -> its (batch, size) pairs, the most informative first

LOGITS = ((128, 32_000), (64, 128_256), (512, 32_000), (128, 128_256))
SAMPLING: Table = {
    "contrastive_sample, contrastive": LOGITS,
    "select_candidates_linear": ((128, 32_000), (512, 32_000), (64, 32_000), (256, 32_000), (1024, 32_000)),
    "select_candidates_linear, width 4096": ((64, 128_256),),
    "contrastive_sample, ancestral": LOGITS,
    "contrastive_sample, top-p 0.95": LOGITS,
    "select_candidates": ((128, 32_000), (512, 32_000), (128, 128_256)),
    "gather_logits": ((128, 32_000), (512, 32_000)),
    "sample_candidates": ((128, 32_000), (512, 32_000)),
}
LAYERS: Table = {
    "paged_attention, 12 heads": ((128, 220), (512, 220), (1024, 220)),
    "paged_attention, 12 heads, dropout": ((512, 220), (128, 220)),
    "paged_attention, 32 heads, 8 KV heads": ((64, 330), (64, 2048)),
    "paged_attention, shared prefixes, 12 heads": ((64, 608), (512, 220), (8, 608)),
    "paged_attention, shared prefixes, 32 heads, 8 KV heads": ((64, 608), (64, 2048)),
    "paged_attention, prefill, 12 heads": ((4096, 20), (4096, 512)),
    "paged_attention, prefill, 32 heads, 8 KV heads": ((4096, 2048),),
    "add_rms_norm": ((128, 768), (512, 768), (64, 4096)),
    "silu_mul": ((128, 3072), (512, 3072), (64, 14336)),
    "rope_and_store": ((128, 12), (512, 12), (64, 32)),
    "softmax_gradient": ((768, 32_000), (4096, 32_000)),
}
# Keys are the first words of the ops' names. All other ops have DRY_SIZE.
DRY_SIZES = {"paged_attention": 40, "add_rms_norm": 64, "silu_mul": 64, "rope_and_store": 2}
DRY_BATCH, DRY_SIZE = 3, 300


def dry_pair(name: str) -> tuple[int, int]:
    """Return (batch, size) of an op in a dry run."""
    return DRY_BATCH, DRY_SIZES.get(name.split(",")[0], DRY_SIZE)


def cases(table: Table, dry: bool) -> dict[str, Case]:
    """Return the cases of a table by name."""
    found = [
        Case(BY_NAME[name], torch.bfloat16, *pair)
        for name, pairs in table.items()
        for pair in ((dry_pair(name),) if dry else pairs)
    ]
    return {str(case): case for case in found}


def time_all(context: Context, table: Table, compiled: bool = False) -> None:
    """Time every case of a table.

    Args:
        compiled: compare with the eager code under torch.compile only. A dry run traces it and compiles nothing.
    """
    bench = Bench(context)
    context.record("note", line=bench.describe())
    for name, case in context.each(cases(table, context.dry)):
        with context.case(name) as found:
            rivals = None
            if compiled:
                backend = "eager" if context.dry else "inductor"
                rivals = {"torch.compile": torch.compile(case.op.eager, dynamic=False, backend=backend)}
            bench.case(case, found, rivals)


JOBS: dict[str, Callable[[Context], None]] = {
    "sampling": partial(time_all, table=SAMPLING),
    "layers": partial(time_all, table=LAYERS),
    "sample_compiled": partial(time_all, table={"contrastive_sample, contrastive": LOGITS[:1]}, compiled=True),
}
