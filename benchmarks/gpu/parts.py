"""The parts of the run and their jobs, in the order in which they run, with times that they may take on an H100."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One process.

    A job starts only if `expected` seconds of the run's budget are left. It is killed after `limit` seconds.
    """

    part: str
    name: str
    module: str  # its table JOBS has the job's function
    expected: float
    limit: float
    skipped_in_dry_run: bool = False  # at the sizes of a dry run it would repeat another job

    @property
    def compiles(self) -> bool:
        """Whether the job uses torch.compile, which takes long; --no-compile skips it."""
        return self.name.endswith("compiled")


def _part(part: str, module: str, **jobs: tuple[Any, ...]) -> tuple[Job, ...]:
    """Return the jobs of a part, given the fields of :class:`Job` from `expected` on for each name."""
    return tuple(Job(part, name, f"benchmarks.gpu.{module}", *fields) for name, fields in jobs.items())


_CHECK = (20, 120)

PARALLEL = ("check", "end_to_end")  # their jobs mostly compile or compute on the CPU and may run at the same time

PARTS: dict[str, tuple[Job, ...]] = {
    "check": _part(
        "check",
        "check_jobs",
        noise=_CHECK,  # all others: the longest first, since several run at once
        repeats=_CHECK,
        select_candidates_linear_bfloat16=_CHECK,
        select_candidates_linear_float16=(*_CHECK, True),
        attention_variants=_CHECK,
        shared_attention=_CHECK,
        prefill_attention=_CHECK,
        contrastive_sample=_CHECK,
        attention=_CHECK,
        edges=_CHECK,
        sample_methods=_CHECK,
        select_candidates_linear_float32=_CHECK,
        cross_entropy=_CHECK,
        sample_outside=_CHECK,
        select_candidates=_CHECK,
        sample_candidates=_CHECK,
        gather_logits=_CHECK,
        add_rms_norm=_CHECK,
        silu_mul=_CHECK,
        rope_and_store=_CHECK,
        graph=_CHECK,
    ),
    "end_to_end": _part(
        "end_to_end",
        "end_to_end",
        shard_1=(25, 80),
        shard_2=(25, 80, True),
        shard_3=(25, 80, True),
        shard_4=(25, 80, True),
        sanitizer=(25, 90),
    ),
    "kernels": _part("kernels", "kernels", sampling=(25, 90), layers=(25, 75), sample_compiled=(20, 50)),
    "generate": _part(
        "generate",
        "generate",
        paper_128=(12, 60),  # compiles the kernels that the following jobs find in the cache
        paper_512=(12, 35, True),
        paper_1024=(12, 40, True),
        llama3_64=(15, 60, True),
        paper_20x_512=(12, 35, True),
        paper_dropout_512=(12, 35),
        paper_512_refills=(12, 35),
        llama3_256=(15, 45, True),
    ),
    "rivals": _part("rivals", "loops", eager=(15, 60), compiled=(40, 90)),
    "profile": _part("profile", "trace", paper_512=(15, 60)),
    "training": _part("training", "training", micro_8=(15, 60), micro_32=(15, 60, True), loss=(12, 45)),
    "sweep": _part("sweep", "sweep", kernels=(25, 90)),
}
