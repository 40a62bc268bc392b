"""cdgen: contrastive decoding with two language models, and whole synthetic corpora from them."""

import importlib

__version__ = "0.1.0"
__all__ = [
    "CompletionOutput",
    "ContrastiveLM",
    "RequestOutput",
    "SamplingParams",
    "Source",
    "TrainConfig",
    "__version__",
    "prepare_corpus",
    "train",
    "train_tokenizer",
]

# Loaded at first use, so that `cdgen --help` does not wait for torch.
_HOME = {
    "ContrastiveLM": "cdgen.engine.llm",
    "SamplingParams": "cdgen.engine.sampling_params",
    "RequestOutput": "cdgen.engine.outputs",
    "CompletionOutput": "cdgen.engine.outputs",
    "TrainConfig": "cdgen.training.config",
    "train": "cdgen.training.trainer",
    "Source": "cdgen.prepare.sources",
    "prepare_corpus": "cdgen.prepare.build",
    "train_tokenizer": "cdgen.prepare.tokenizer",
}


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'cdgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return sorted(__all__)
