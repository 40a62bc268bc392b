"""The data of a training run: its token pools, their mixture, and the fingerprints of all its inputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdgen.storage.folder import file_sha256
from cdgen.training import corpora
from cdgen.training.config import PRESETS, TrainConfig
from cdgen.training.mixture import Mixture
from cdgen.training.tokens import Pool

_REAL, _SYNTHETIC = 0, 1  # random streams; the mixture uses 2, and dropout 3
_TEST_SEED = 0  # the test text is cut into the same blocks in every run


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Attributes:
        mixture: the batches.
        test: pool of the test text, if there is one.
        fingerprints: checksums of the texts, the tokenizer and the model's config, as JSON, by field of the config. A
            preset's fingerprint is its name.
    """

    mixture: Mixture
    test: Pool | None
    fingerprints: dict[str, Any]


def open_data(config: TrainConfig, tokenizer: corpora.Tokenizer, world: int) -> TrainingData:
    """Find the corpora that a config names, tokenise those that are not in the cache, and make the pools.

    Args:
        world: number of processes, which must divide the batch.
    Raises:
        InputError: a corpus is missing or too small, or the ratio or the number of processes is impossible.
        CorpusError: a corpus or the cache is damaged, or the cache cannot be written.
    """
    assert config.ratio is not None, "TrainConfig has set it"
    found = _find(config)

    def pool(field: str, seed: int, stream: int) -> Pool | None:
        files = [corpora.token_file(corpus, tokenizer) for corpus in found[field]]
        names = ", ".join(corpus.name for corpus in found[field])
        return Pool(files, config.block_size, seed, f"{field} {names}", stream) if files else None

    real, synthetic = pool("corpus", config.seed, _REAL), pool("synthetic", config.seed, _SYNTHETIC)
    mixture = Mixture(real, synthetic, config.batch_size, config.ratio, config.seed)
    mixture.check_world(world)
    test = pool("test", _TEST_SEED, _REAL)
    fingerprints = {field: [corpus.fingerprint for corpus in group] for field, group in found.items()}
    inputs = {"tokenizer": tokenizer.fingerprint, "model": _model_fingerprint(config.model)}
    return TrainingData(mixture, test, fingerprints | inputs)


def _find(config: TrainConfig) -> dict[str, list[corpora.Corpus]]:
    """Return the corpora that are read, by field of the config."""
    found = {
        "corpus": [corpora.find(config.corpus)] if config.ratio != 1 else [],
        "synthetic": [corpora.find(name) for name in config.synthetic] if config.ratio else [],
    }
    beside = Path(config.corpus).expanduser() / "test.parquet"
    test = config.test or (str(beside) if beside.exists() else None)
    return found | {"test": [corpora.find(test, "test")] if test else []}


def _model_fingerprint(name: str) -> str:
    """Return the name of a preset, or the sha256 of a config file."""
    path = Path(name).expanduser()
    return name if name in PRESETS else file_sha256(path / "config.json" if path.is_dir() else path)
