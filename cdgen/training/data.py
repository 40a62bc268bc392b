"""The data of a training run: its corpora and their fingerprints, its token pools, and their mixture."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from cdgen.corpus.find import Corpus, find
from cdgen.storage.folder import file_sha256
from cdgen.storage.progress import Progress
from cdgen.training import corpora
from cdgen.training.config import PRESETS, TrainConfig
from cdgen.training.mixture import Mixture
from cdgen.training.tokens import Pool
from cdgen.values import expanded

_REAL, _SYNTHETIC = 0, 1  # random streams; the mixture uses 2, and dropout 3
_TEST_SEED = 0  # the test text is cut into the same blocks in every run


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, which are known before any text is tokenised.

    Attributes:
        found: the corpora that are read, by field of the config.
        tokenizer: the tokenizer.
        fingerprints: checksums of the texts, the tokenizer and the model's config, as JSON, by field of the config. A
            preset's fingerprint is its name.
    """

    found: dict[str, list[Corpus]]
    tokenizer: corpora.Tokenizer
    fingerprints: dict[str, Any]


class TrainingData(NamedTuple):
    """The batches of a run, and the pool of its test text, if there is one."""

    mixture: Mixture
    test: Pool | None


def find_inputs(config: TrainConfig, tokenizer: corpora.Tokenizer) -> Inputs:
    """Find the corpora that a config names, and compute the fingerprints of all inputs.

    Raises:
        InputError: a corpus is missing, or not finished.
        CorpusError: a corpus is damaged.
    """
    found = {
        "corpus": [find(config.corpus)] if config.ratio != 1 else [],
        "synthetic": [find(name) for name in config.synthetic] if config.ratio else [],
    }
    beside = expanded(config.corpus) / "test.parquet"
    test = config.test or (str(beside) if beside.exists() else None)
    found |= {"test": [find(test, "test")] if test else []}
    fingerprints = {field: [corpus.fingerprint for corpus in group] for field, group in found.items()}
    inputs = {"tokenizer": tokenizer.fingerprint, "model": _model_fingerprint(config.model)}
    return Inputs(found, tokenizer, fingerprints | inputs)


def open_data(config: TrainConfig, inputs: Inputs, progress: Progress) -> TrainingData:
    """Tokenise the corpora that are not in the cache, and make the pools.

    Args:
        config: the run's settings.
        inputs: the corpora and the tokenizer that the settings name.
        progress: receives the characters of text that are tokenised.
    Raises:
        InputError: a corpus is too small, or cannot be read as text.
        CorpusError: the cache is damaged or cannot be written.
    """
    assert config.ratio is not None, "TrainConfig has set it"

    def pool(field: str, seed: int, stream: int) -> Pool | None:
        group = inputs.found[field]
        files = [corpora.token_file(corpus, inputs.tokenizer, progress) for corpus in group]
        names = ", ".join(corpus.name for corpus in group)
        return Pool(files, config.block_size, seed, f"{field} {names}", stream) if files else None

    test = pool("test", _TEST_SEED, _REAL)  # first, since it is the shortest, and may be too short
    synthetic, real = pool("synthetic", config.seed, _SYNTHETIC), pool("corpus", config.seed, _REAL)
    return TrainingData(Mixture(real, synthetic, config.batch_size, config.ratio, config.seed), test)


def _model_fingerprint(name: str) -> str:
    """Return the name of a preset, or the sha256 of a config file."""
    path = expanded(name)
    return name if name in PRESETS else file_sha256(path / "config.json" if path.is_dir() else path)
