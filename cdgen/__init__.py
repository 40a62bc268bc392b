"""Fast contrastive decoding with two language models, and a pipeline that turns it into synthetic training corpora."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdgen.corpus.generate import GeneratedCorpus, generate_corpus
    from cdgen.corpus.seeds import Seed
    from cdgen.engine.llm import ContrastiveLM
    from cdgen.engine.outputs import CompletionOutput, RequestOutput
    from cdgen.engine.requests import sequence_number
    from cdgen.engine.sampling_params import SamplingParams
    from cdgen.errors import CorpusError, InputError
    from cdgen.evaluation.comparison.compare import compare
    from cdgen.evaluation.comparison.data import Comparison
    from cdgen.evaluation.evaluate import Evaluation, evaluate
    from cdgen.prepare.build import prepare_corpus
    from cdgen.prepare.prepared import PreparedCorpus, TrainedTokenizer
    from cdgen.prepare.sources import Source
    from cdgen.prepare.tokenizer import train_tokenizer
    from cdgen.training.config import TrainConfig
    from cdgen.training.result import TrainingRun
    from cdgen.training.trainer import train
    from cdgen.viewer.explanation import Explanation

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "CompletionOutput",
    "ContrastiveLM",
    "CorpusError",
    "Evaluation",
    "Explanation",
    "GeneratedCorpus",
    "InputError",
    "PreparedCorpus",
    "RequestOutput",
    "SamplingParams",
    "Seed",
    "Source",
    "TrainConfig",
    "TrainedTokenizer",
    "TrainingRun",
    "__version__",
    "compare",
    "evaluate",
    "generate_corpus",
    "prepare_corpus",
    "sequence_number",
    "train",
    "train_tokenizer",
]

# Imported at first use, so that `cdgen --help` does not wait for torch.
_HOME = {
    "ContrastiveLM": "cdgen.engine.llm",
    "SamplingParams": "cdgen.engine.sampling_params",
    "RequestOutput": "cdgen.engine.outputs",
    "CompletionOutput": "cdgen.engine.outputs",
    "sequence_number": "cdgen.engine.requests",
    "Explanation": "cdgen.viewer.explanation",
    "CorpusError": "cdgen.errors",
    "InputError": "cdgen.errors",
    "Seed": "cdgen.corpus.seeds",
    "generate_corpus": "cdgen.corpus.generate",
    "GeneratedCorpus": "cdgen.corpus.generate",
    "TrainConfig": "cdgen.training.config",
    "train": "cdgen.training.trainer",
    "TrainingRun": "cdgen.training.result",
    "Source": "cdgen.prepare.sources",
    "prepare_corpus": "cdgen.prepare.build",
    "PreparedCorpus": "cdgen.prepare.prepared",
    "train_tokenizer": "cdgen.prepare.tokenizer",
    "TrainedTokenizer": "cdgen.prepare.prepared",
    "evaluate": "cdgen.evaluation.evaluate",
    "Evaluation": "cdgen.evaluation.evaluate",
    "compare": "cdgen.evaluation.comparison.compare",
    "Comparison": "cdgen.evaluation.comparison.data",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cdgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
