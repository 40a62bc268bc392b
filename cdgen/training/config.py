"""TrainConfig, which holds every setting of a training run, and the paper's model sizes by name."""

import os
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from cdgen.errors import InputError
from cdgen.values import FLOAT32_MAX, FLOAT32_MIN, INT64_MAX, expanded, integer, real, switch

# Sizes from Ulm, Du and Snaebjarnarson (arXiv 2510.08245): GOOD is "paper", the BADs are 5 to 100 times smaller. "tiny"
# is for trying things out.
PRESETS: dict[str, dict[str, int]] = {
    name: {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": feed_forward,
    }
    for name, (layers, width, heads, feed_forward) in {
        "paper": (12, 768, 12, 3072),
        "paper-5x": (10, 512, 8, 2048),
        "paper-10x": (8, 384, 6, 1536),
        "paper-20x": (6, 256, 4, 1024),
        "paper-50x": (5, 224, 4, 896),
        "paper-100x": (4, 192, 3, 768),
        "tiny": (4, 128, 4, 512),
    }.items()
}
DTYPES = ("float32", "bfloat16")
_INTEGERS = {  # lowest and highest value of each field
    "batch_size": (1, 2**20),
    "micro_batch_size": (1, 2**20),
    "block_size": (2, 2**24),
    "steps": (1, INT64_MAX),
    "warmup_steps": (0, INT64_MAX),
    "save_every": (1, INT64_MAX),
    "keep_states": (1, INT64_MAX),
    "eval_blocks": (0, INT64_MAX),
    "seed": (0, INT64_MAX),
}
_REALS = {
    "learning_rate": (FLOAT32_MIN, FLOAT32_MAX),
    "weight_decay": (0.0, FLOAT32_MAX),
}
_PATHS = ("corpus", "tokenizer", "out", "test", "model")
_SWITCHES = ("compile", "tensorboard")
_STEP_TOKENS = 2**31 - 1  # the batch of a step is one array
DEFAULT_RATIO = 0.3  # the paper's share of synthetic rows
_WARMUP_STEPS = 150  # the paper's, of 8,000 steps
# Fields that may change when a run is resumed: they do not affect the weights, apart from rounding.
MAY_CHANGE = ("out", "micro_batch_size", "keep_states", "compile", "tensorboard")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The defaults are the paper's (Ulm, Du and Snaebjarnarson, arXiv 2510.08245).

    On a CPU, two runs with the same settings write the same weights, bit for bit. Numbers may be Python's, numpy's or
    torch's.

    Args:
        corpus: real text: a folder with `train.parquet`, a generated corpus, or a file of texts.
        tokenizer: folder that transformers' AutoTokenizer can load. The tokenizer needs BOS and EOS tokens.
        out: the run's folder. If it holds an unfinished run with the same settings, training resumes.
        synthetic: corpora that are joined into one pool and mixed into every batch.
        ratio: share of synthetic rows, 0 to 1: `int(batch_size * ratio)` rows of every batch are synthetic. Default:
            0.3 with `synthetic`, 0 without.
        test: text on which perplexity is computed, in the same formats as `corpus`. Default: the `test.parquet` in the
            folder `corpus`, if there is one.
        model: a name in :data:`PRESETS`, or a transformers `config.json` or the folder that holds one.
        batch_size: blocks per step, over all processes.
        micro_batch_size: blocks that one process computes at once; gradients are accumulated over micro-batches.
        block_size: tokens per block. A model in :data:`PRESETS` has as many positions.
        steps: number of optimizer steps.
        warmup_steps: steps over which the learning rate rises linearly from 0. It then follows a cosine down to 0 at
            `steps`. Default: 150, or a tenth of `steps` if that is less.
        learning_rate: peak learning rate of AdamW (betas 0.9 and 0.999).
        weight_decay: AdamW's weight decay, applied to matrices; biases and norms do not decay.
        save_every: steps between checkpoints. Perplexity is computed at each checkpoint.
        keep_states: number of latest checkpoints that keep the optimizer state, from which a run can resume. The state
            is twice as large as the model.
        eval_blocks: number of blocks of the test text to evaluate on; 0 means all.
        dtype: dtype of matrix products, "float32" or "bfloat16". Weights and optimizer state are always float32.
            Default: bfloat16 on CUDA devices, float32 elsewhere. On CUDA devices, float32 products use TF32.
        seed: seed of the initial weights, the order of the data, and dropout.
        compile: run the model through torch.compile.
        tensorboard: also write logs for TensorBoard, into the folder `tensorboard` in `out`.
    Raises:
        InputError: a value has the wrong type or is out of range; the message names the field. InputError is a
            ValueError.
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
    warmup_steps: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    save_every: int = 500
    keep_states: int = 2
    eval_blocks: int = 0
    dtype: str | None = None
    seed: int = 42
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        synthetic = self.synthetic if isinstance(self.synthetic, (list, tuple)) else (self.synthetic,)
        self._set("synthetic", tuple(_path("synthetic", path) for path in synthetic))
        if len(self.synthetic) > len({os.path.realpath(expanded(path)) for path in self.synthetic}):
            raise InputError(f"synthetic = {', '.join(self.synthetic)}: a corpus is given twice")
        for name in _PATHS:
            if name != "test" or self.test is not None:
                self._set(name, _path(name, getattr(self, name)))
        self._set("out", str(expanded(self.out)))
        default_ratio = DEFAULT_RATIO if synthetic else 0.0
        ratio = real("ratio", default_ratio if self.ratio is None else self.ratio, 0.0, 1.0)
        self._set("ratio", ratio)
        for name, bounds in _INTEGERS.items():
            if name == "warmup_steps" and self.warmup_steps is None:
                self._set(name, min(_WARMUP_STEPS, self.steps // 10))
            self._set(name, integer(name, getattr(self, name), *bounds))
        for name, limits in _REALS.items():
            self._set(name, real(name, getattr(self, name), *limits))
        for name in _SWITCHES:
            self._set(name, switch(name, getattr(self, name)))
        if self.batch_size * self.block_size > _STEP_TOKENS:
            raise InputError(
                f"batch_size = {self.batch_size}: with block_size = {self.block_size}, a step has "
                f"{self.batch_size * self.block_size} tokens; at most {_STEP_TOKENS} are possible"
            )
        _, synthetic_rows = split_batch(self.batch_size, ratio)
        if synthetic_rows and not self.synthetic:
            raise InputError(f"ratio = {ratio}: there is no synthetic corpus; give one as synthetic")
        if self.dtype is not None:
            self._set("dtype", str(self.dtype).removeprefix("torch."))  # a torch dtype may be given as well
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"dtype = {self.dtype!r}: use {' or '.join(DTYPES)}")

    def _set(self, name: str, value: Any) -> None:
        """Set a field, which only the constructor may do."""
        object.__setattr__(self, name, value)

    def as_json(self) -> dict[str, Any]:
        """Return the fields that affect the weights as a JSON object. A run can only be resumed if they are equal."""
        values = {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def config_folder(model: str) -> Path:
    """Return the folder with the config.json that a field `model` names.

    Raises:
        InputError: there is none.
    """
    path = expanded(model)
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise InputError(f"model = {model!r}: use {', '.join(PRESETS)}, or a folder with a config.json")
    return folder


def split_batch(batch: int, ratio: float) -> tuple[int, int]:
    """Return how many rows of a batch are real, and how many are synthetic.

    Args:
        batch: rows of the batch.
        ratio: share of synthetic rows, 0 to 1, taken as it is written: 0.29 of 100 rows are 29, although the float
            nearest to 0.29 is smaller.
    Raises:
        InputError: the ratio is out of range, or too small for one synthetic row.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio = {ratio}: must be 0 to 1")
    synthetic = int(batch * Fraction(str(ratio)))
    if ratio and not synthetic:
        raise InputError(
            f"ratio = {ratio}: none of the {batch} rows of a batch is synthetic; raise ratio or batch_size"
        )
    return batch - synthetic, synthetic


def _path(name: str, value: Any) -> str:
    """Return a path as a string."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise InputError(f"{name} = {value!r}: is not a path")
    return path


FIELDS = tuple(fields(TrainConfig))


def preset_shape(config: TrainConfig) -> dict[str, int]:
    """Return the arguments of LlamaConfig, except for the vocabulary, for a model in :data:`PRESETS`.

    The model states as many positions as it is trained on, so that nothing reads or writes longer texts with it. (Those
    of the paper state 2,048, and are trained on 1,024.)
    """
    return PRESETS[config.model] | {"max_position_embeddings": config.block_size}
