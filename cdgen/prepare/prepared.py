"""What :func:`~cdgen.prepare.build.prepare_corpus` and :func:`~cdgen.prepare.tokenizer.train_tokenizer` return."""

from dataclasses import dataclass
from pathlib import Path

from cdgen.storage.manifest import Manifest


@dataclass(frozen=True)
class Split:
    """A split of a prepared corpus.

    Attributes:
        path: its Parquet file, with the columns id, source and text.
        documents, words: number of documents, and of words in them.
        bytes: size of their texts in UTF-8.
        files: number of files that they come from, if the corpus is split by file; otherwise None.
    """

    path: Path
    documents: int
    words: int
    bytes: int
    files: int | None = None


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared corpus.

    Attributes:
        folder: its folder, which `TrainConfig.corpus` and `train_tokenizer` take.
        train: the texts to train on.
        test: the texts that are held out for testing; None if their share is 0.
        seeds: the texts that are held out as seeds of generated corpora; None if their share is 0.
        duplicates: number of documents left out because an equal one precedes them.
        over_budget: number of documents left out because their source had reached its budget of words.
        empty: number of documents without text.
        written: False if the folder already held this corpus.
    """

    folder: Path
    train: Split
    test: Split | None
    seeds: Split | None
    duplicates: int
    over_budget: int
    empty: int
    written: bool

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, written: bool) -> "PreparedCorpus":
        """Return the corpus that a manifest describes."""
        counts = manifest["counts"]
        inputs = [one for source in manifest["sources"] for one in source["inputs"]]

        def split(name: str) -> Split | None:
            file = f"{name}.parquet"
            if file not in manifest["files"]:
                return None
            files = sum(one["split"] == name for one in inputs) if all("split" in one for one in inputs) else None
            return Split(folder / file, **counts[name], files=files)

        train = split("train")
        assert train is not None, "every prepared corpus has one"
        left_out = {name: counts[name] for name in ("duplicates", "over_budget", "empty")}
        return cls(folder, train, split("test"), split("seeds"), **left_out, written=written)


@dataclass(frozen=True)
class TrainedTokenizer:
    """A trained tokenizer.

    Attributes:
        folder: its folder, which `TrainConfig.tokenizer` and transformers' `AutoTokenizer` take.
        vocab_size: number of tokens, including the special ones.
        written: False if the folder already held this tokenizer.
    """

    folder: Path
    vocab_size: int
    written: bool
