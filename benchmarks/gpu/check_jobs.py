"""The part `check`: compare every op with the float64 reference."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.gpu import edge_layers, edges, graph, repeats
from benchmarks.gpu.check import Checked, check
from benchmarks.gpu.context import Context
from benchmarks.gpu.noise import check_noise, reference_noise, triton_noise
from benchmarks.ops.cases import OPS, Case
from benchmarks.ops.op import Op
from benchmarks.ops.prefill import PREFILL_OPS
from benchmarks.ops.shared import SHARED_OPS

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BY_NAME = {op.name: op for op in OPS}
DRY_BATCH = 3


class Group(NamedTuple):
    """Ops that are checked at the same sizes and dtypes. In a dry run, each op has one small case."""

    ops: list[Op]
    dtypes: tuple[torch.dtype, ...]
    pairs: tuple[tuple[int, int], ...]  # (batch, size)
    dry_size: int  # the size in a dry run

    def cases(self, dry: bool) -> dict[str, Case]:
        """Return the cases by name."""
        pairs, dtypes = (((DRY_BATCH, self.dry_size),), self.dtypes[:1]) if dry else (self.pairs, self.dtypes)
        found = [Case(op, dtype, *pair) for op in self.ops for dtype in dtypes for pair in pairs]
        return {str(case): case for case in found}


def all_pairs(batches: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((batch, size) for size in sizes for batch in batches)


def named(*names: str) -> list[Op]:
    """Return the ops of these names."""
    return [BY_NAME[name] for name in names]


BATCHES = (1, 3, 64, 128, 512)
EVERY = all_pairs(BATCHES, (32_000, 32_003, 128_256))
SOME = ((3, 32_003), (128, 32_000), (1, 128_256), (64, 128_256))
LAYERS = all_pairs(BATCHES, (768, 4096))
HEADS = all_pairs(BATCHES, (12, 32))
KEYS = ((1, 5), (3, 420), (1, 2048), (64, 220), (128, 221), (512, 220))
FEW_KEYS = ((1, 5), (3, 420), (16, 2048), (64, 220), (128, 221))  # a float64 reference with wide heads takes gigabytes
WGMMA = all_pairs((64, 128, 512), (32_000, 32_003))  # batches for which matrix units work on warp groups
WIDE = ((64, 32_003), (128, 32_003), (512, 32_003), (64, 128_256))
METHODS = ("min-p", "ancestral", "top-k 40, top-p 0.9", "top-p 0.95")

GROUPS: dict[str, list[Group]] = {
    "select_candidates_linear_bfloat16": [
        Group(edges.LINEAR_EDGES[:2], (BF16,), WGMMA, 500),
        Group(named("select_candidates_linear"), (BF16,), EVERY, 500),
        Group(named("select_candidates_linear, width 4096"), (BF16,), WIDE, 300),
    ],
    "select_candidates_linear_float16": [
        Group(edges.LINEAR_EDGES[:2], (FP16,), WGMMA, 500),
        Group(named("select_candidates_linear"), (FP16,), EVERY, 500),
        Group(named("select_candidates_linear, width 4096"), (FP16,), WIDE, 300),
    ],
    "select_candidates_linear_float32": [
        Group(named("select_candidates_linear"), (FP32,), SOME, 500),
        Group(edges.LINEAR_EDGES[:5], (FP32, BF16), ((3, 32_003), (16, 32_000), (128, 32_003)), 500),
    ],
    "contrastive_sample": [
        Group(named("contrastive_sample, contrastive"), (BF16,), EVERY, 500),
        Group(named("contrastive_sample, contrastive"), (FP16, FP32), SOME, 500),
    ],
    "sample_methods": [
        Group(
            named(*(f"contrastive_sample, {method}" for method in METHODS)),
            (BF16, FP32),
            ((3, 32_003), (128, 32_000), (512, 32_000), (1, 128_256)),
            500,
        ),
    ],
    "sample_outside": [
        Group(
            named("contrastive_sample, contrastive, log-probabilities", "contrastive_sample, outside_head -20"),
            (BF16, FP32),
            ((3, 32_003), (128, 32_000), (1, 128_256)),
            500,
        ),
    ],
    "select_candidates": [Group(named("select_candidates"), (BF16, FP16, FP32), SOME, 500)],
    "sample_candidates": [Group(named("sample_candidates"), (BF16, FP16, FP32), SOME, 500)],
    "gather_logits": [
        Group(named("gather_logits"), (BF16, FP16, FP32), SOME, 500),
        Group(edges.LINEAR_EDGES[5:], (BF16, FP32), ((3, 32_003), (128, 32_000)), 500),
    ],
    "add_rms_norm": [
        Group(named("add_rms_norm"), (BF16, FP16, FP32), (*LAYERS, (3, 100)), 64),
        Group([edge_layers.NORM_EDGE], (BF16, FP32), ((3, 128), (512, 64)), 64),
    ],
    "silu_mul": [Group(named("silu_mul"), (BF16, FP16, FP32), (*LAYERS, (3, 100)), 64)],
    "rope_and_store": [
        Group(named("rope_and_store"), (BF16, FP16, FP32), HEADS, 2),
        Group([edge_layers.ROPE_EDGE], (BF16, FP32), ((3, 32), (512, 12)), 4),
    ],
    "attention": [
        Group(named("paged_attention, 12 heads"), (BF16, FP16, FP32), KEYS, 40),
        Group(named("paged_attention, 32 heads, 8 KV heads"), (BF16, FP16, FP32), FEW_KEYS, 40),
    ],
    "attention_variants": [
        Group(named("paged_attention, 12 heads, dropout"), (BF16, FP32), KEYS, 40),
        Group(edge_layers.ATTENTION_EDGES, (BF16,), ((3, 420), (16, 2048), (128, 220)), 40),
        Group(edge_layers.ATTENTION_EDGES[:5:2], (FP16, FP32), ((3, 420), (128, 220)), 40),
    ],
    "prefill_attention": [Group(PREFILL_OPS, (BF16, FP16), ((7, 20), (200, 20), (420, 140), (300, 300)), 40)],
    "shared_attention": [
        Group(SHARED_OPS, (BF16, FP16), ((8, 608), (3, 420), (128, 221), (33, 2048)), 40),
        Group(edge_layers.SHARED_EDGES, (BF16, FP16), ((8, 608), (3, 420), (128, 220)), 40),
    ],
    "cross_entropy": [
        Group(named("softmax_gradient"), (BF16, FP16, FP32), ((1, 32_000), (768, 32_003), (128, 128_256)), 500),
        Group([edge_layers.IGNORED_EDGE], (BF16, FP32), ((64, 32_003),), 500),
        Group(named("linear_cross_entropy"), (BF16, FP32), ((999, 32_003), (8192, 32_000)), 500),
    ],
    "edges": [Group(edges.LOGIT_EDGES, (BF16, FP32), ((3, 32_003), (128, 32_000), (64, 128_256)), 500)],
}  # fmt: skip


def record_check(context: Context, name: str, checking: Callable[[], Checked]) -> None:
    with context.case(name) as found:
        found |= checking().as_result()


def check_groups(context: Context, groups: list[Group]) -> None:
    cases = {name: case for group in groups for name, case in group.cases(context.dry).items()}
    for name, case in context.each(cases):
        record_check(context, name, partial(check, case, context.device))


def noise_job(context: Context) -> None:
    tokens, make = (10_003, reference_noise) if context.dry else (1_000_003, triton_noise)
    context.plan(["noise"])
    record_check(context, "noise", partial(check_noise, context.device, tokens, make))


def graph_job(context: Context) -> None:
    for name, checking in context.each(graph.CHECKS):
        record_check(context, name, partial(checking, context.device))


JOBS: dict[str, Callable[[Context], None]] = {
    "noise": noise_job,
    "graph": graph_job,
    "repeats": repeats.repeats_job,
    **{name: partial(check_groups, groups=groups) for name, groups in GROUPS.items()},
}
