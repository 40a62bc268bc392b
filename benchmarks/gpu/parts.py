"""The parts of the run and their jobs, in order of risk, with the time that each may take on an H100."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One process.

    A job starts only if `expected` seconds of the run's budget are left. It is killed after `limit` seconds.
    """

    part: str
    name: str
    module: str  # holds the job's function in its table JOBS
    expected: float
    limit: float
    repeats: bool = False  # at the sizes of a dry run it does what another job does, so that a dry run leaves it out

    @property
    def compiles(self) -> bool:
        """Whether it times what torch.compile makes, which takes long and which --no-compile leaves out."""
        return self.name.endswith("compiled")


def _part(part: str, module: str, **jobs: tuple) -> tuple[Job, ...]:
    """`jobs`: the fields of :class:`Job` from `expected` on, by name."""
    return tuple(Job(part, name, f"benchmarks.gpu.{module}", *fields) for name, fields in jobs.items())


_CHECK = (20, 120)

PARALLEL = ("check", "end_to_end")  # parts that compile or compare with a CPU, so that jobs may run side by side

PARTS: dict[str, tuple[Job, ...]] = {
    "check": _part(
        "check",
        "check_jobs",
        noise=_CHECK,  # then the longest first, as several run at once
        repeats=_CHECK,
        select_candidates_linear_bfloat16=_CHECK,
        select_candidates_linear_float16=(*_CHECK, True),
        attention_variants=_CHECK,
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
        paper_128=(12, 60),  # compiles what the others of the paper's pair find
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
