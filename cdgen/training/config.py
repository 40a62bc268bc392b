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
_LEAST = {
    "batch_size": 1,
    "micro_batch_size": 1,
    "block_size": 2,
    "steps": 1,
    "save_every": 1,
    "keep_states": 1,
    "warmup_steps": 0,
    "eval_blocks": 0,
    "weight_decay": 0,
    "seed": 0,
}
_FREE = ("out", "micro_batch_size", "keep_states", "compile", "tensorboard")  # the weights are the same, to rounding
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Defaults are the paper's. Immutable; two runs of one config write the same weights on a CPU.

    Args:
        corpus: real text: a folder with train.parquet, one that `cdgen generate` wrote, or a file of texts.
        tokenizer: a folder that transformers' AutoTokenizer loads, with start and end of text.
        out: the run's folder.
        synthetic: corpora that are joined into one pool, mixed into every batch.
        ratio: int(batch_size * ratio) rows of every batch are synthetic; default 0.3 with `synthetic`, else 0.
        test: text for perplexity, as `corpus`; default: the test.parquet beside train.parquet, if any.
        model: a name of :data:`PRESETS`, or a folder or config.json of transformers.
        batch_size: blocks of a step, over all processes. micro_batch_size: blocks that a process computes at once.
        block_size: tokens of a block.
        steps, warmup_steps: linear warm-up, then a cosine to 0 at `steps`.
        learning_rate, weight_decay: of AdamW with betas 0.9 and 0.999; biases and norms do not decay.
        save_every: steps between checkpoints, each with an evaluation.
        keep_states: so many of the last checkpoints keep the state to resume from, twice as large as the model.
        eval_blocks: blocks of the test text to evaluate on; 0: all.
        dtype: dtype of matrix products, "float32" or "bfloat16"; weights are always float32. Default: bfloat16 on CUDA
            devices, float32 elsewhere. On CUDA devices float32 products are computed in TF32.
        seed: of weights and data order.
        compile: run the model through torch.compile. tensorboard: also log for TensorBoard.
    Raises:
        InputError (a ValueError): a value out of range; the message names the field.
    """

    corpus: str
    tokenizer: str
    out: str
    synthetic: tuple[str, ...] = ()
    ratio: float | None = None
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
    keep_states: int = 2
    eval_blocks: int = 0
    dtype: str | None = None
    seed: int = 42
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self):
        synthetic = (self.synthetic,) if isinstance(self.synthetic, str) else tuple(self.synthetic)
        object.__setattr__(self, "synthetic", synthetic)
        if self.ratio is None:
            object.__setattr__(self, "ratio", 0.3 if synthetic else 0.0)
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise InputError(f"{name} = {getattr(self, name)}: must be {least} or more")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate = {self.learning_rate}: must be more than 0")
        if not 0 <= self.ratio <= 1:
            raise InputError(f"ratio = {self.ratio}: must be 0 to 1")
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"dtype = {self.dtype!r}: use {' or '.join(DTYPES)}")

    def as_json(self):
        """A JSON object of all that decides the weights: whatever differs in it makes another run."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(self).items() if key not in _FREE}


FIELDS = tuple(fields(TrainConfig))
