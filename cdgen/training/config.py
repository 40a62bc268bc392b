"""TrainConfig: everything that decides a run, and the paper's model sizes by name."""

from dataclasses import asdict, dataclass, fields

from cdgen.errors import InputError

# Ulm, Du and Snaebjarnarson (arXiv 2510.08245): GOOD, and BADs so many times smaller; `tiny` is for trying things out.
PRESETS = {
    name: dict(
        zip(("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"), shape, strict=True)
    )
    for name, shape in {
        "paper": (12, 768, 12, 3072),
        "paper-5x": (10, 512, 8, 2048),
        "paper-10x": (8, 384, 6, 1536),
        "paper-20x": (6, 256, 4, 1024),
        "paper-50x": (5, 224, 4, 896),
        "paper-100x": (4, 192, 3, 768),
        "tiny": (4, 128, 4, 512),
    }.items()
}
_LEAST = {"batch_size": 1, "micro_batch_size": 1, "block_size": 2, "steps": 1, "save_every": 1, "warmup_steps": 0}


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Defaults are the paper's. Immutable; two runs of one config write the same weights on a CPU.

    Args:
        corpus: real text: a folder with train.parquet, one that `cdgen generate` wrote, or a file of texts.
        tokenizer: a folder that transformers' AutoTokenizer loads.
        out: the run's folder.
        synthetic: corpora that are joined into one pool, mixed into every batch.
        ratio: int(batch_size * ratio) rows of every batch are synthetic.
        test: text for perplexity, as `corpus`; default: the test.parquet beside train.parquet, if any.
        model: a name of :data:`PRESETS`, or a folder or config.json of transformers.
        batch_size: blocks of a step, over all processes. micro_batch_size: blocks that a process computes at once.
        block_size: tokens of a block, which is also the model's context where `model` is a preset.
        steps, warmup_steps: linear warm-up, then a cosine to 0 at `steps`.
        learning_rate, weight_decay: of AdamW; norms do not decay.
        save_every: steps between checkpoints, each with an evaluation.
        eval_blocks: blocks of the test text to evaluate on; 0: all.
        dtype: "float32", or "bfloat16": products under autocast, weights in float32.
        seed: of weights and data order.
    Raises:
        InputError (a ValueError): a value out of range; the message names the field.
    """

    corpus: str
    tokenizer: str
    out: str
    synthetic: tuple[str, ...] = ()
    ratio: float = 0.3
    test: str | None = None
    model: str = "paper"
    batch_size: int = 256
    micro_batch_size: int = 8
    block_size: int = 1024
    steps: int = 8000
    warmup_steps: int = 150
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    save_every: int = 500
    eval_blocks: int = 0
    dtype: str = "float32"
    seed: int = 42
    compile: bool = False

    def __post_init__(self):
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}: must be {least} or more")
        if not 0 <= self.ratio <= 1:
            raise InputError(f"ratio = {self.ratio}: must be 0 to 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype = {self.dtype!r}: use float32 or bfloat16")
        object.__setattr__(
            self, "synthetic", (self.synthetic,) if isinstance(self.synthetic, str) else tuple(self.synthetic)
        )

    def as_json(self):
        """A JSON object of all that decides the weights; `out` and `micro_batch_size` do not."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(self).items() if key not in _FREE}


_FREE = ("out", "micro_batch_size")  # the latter to rounding
FIELDS = tuple(fields(TrainConfig))
