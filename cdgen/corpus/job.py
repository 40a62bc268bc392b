"""What a process is given to write a corpus, or some of its shards, before models and seeds are read."""

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from cdgen.corpus.manifest import check_folder, shard_count
from cdgen.corpus.parts import Part, path_of, share
from cdgen.corpus.seeds import SeedText, encode_texts, read_texts
from cdgen.corpus.writer import write_corpus
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.sampling_params import SamplingParams
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import Progress
from cdgen.values import expanded


class Texts(NamedTuple):
    """The texts of seeds, and how many were left out because they were empty or too short."""

    texts: list[SeedText]
    dropped: int


@dataclass(frozen=True)
class CorpusJob:
    """A corpus to generate. It can be pickled.

    Attributes:
        out: the corpus's folder.
        models: arguments of :class:`~cdgen.ContrastiveLM`.
        seeds: the files that the seeds are read from.
        reading: how they are read: `field`, `prefix_tokens`, `chunk_words` and `parse_special`.
        params: how continuations are sampled.
        shard_size, format, split_documents: see :func:`~cdgen.corpus.writer.write_corpus`.
    """

    out: str
    models: dict[str, Any]
    seeds: list[str]
    reading: dict[str, Any]
    params: SamplingParams
    shard_size: int = 1000
    format: str = "parquet"
    split_documents: bool = False

    def read(self) -> Texts:
        """Read the texts of the seeds, which needs no models; see :func:`~cdgen.corpus.seeds.read_texts`."""
        return Texts(*read_texts(self.seeds, field=self.reading["field"], chunk_words=self.reading["chunk_words"]))

    def shard_count(self, seeds: int) -> int:
        """Return the number of shards of the complete corpus."""
        return shard_count(seeds * self.params.n, self.shard_size)

    def write(
        self,
        folder: OutputFolder,
        found: Texts,
        *,
        resume: bool = True,
        part: Part | None = None,
        progress: Progress | None = None,
    ) -> tuple[Manifest, int]:
        """Load the models and write the corpus, or a part of it; see :func:`~cdgen.corpus.writer.write_corpus`.

        Args:
            folder: the corpus's folder or that of the part, as an entered context.
            found: what :meth:`read` has returned.
            resume, part, progress: see :func:`~cdgen.corpus.writer.write_corpus`.
        """
        check_folder(folder)
        lm = ContrastiveLM(**self.models)
        prompt_ids = partial(lm.prompt_ids, parse_special=self.reading["parse_special"])
        longest = lm.longest_prompt(self.params)
        prefix = self.reading["prefix_tokens"]
        return write_corpus(
            lm,
            encode_texts(found.texts, prompt_ids, prefix_tokens=prefix, longest=longest),
            folder,
            self.params,
            shard_size=self.shard_size,
            format=self.format,
            resume=resume,
            split_documents=self.split_documents,
            seeds_info={"paths": self.seeds, "dropped": found.dropped, **self.reading},
            part=part,
            progress=progress,
        )

    def write_share(self, shards: list[int], task: int, tasks: int) -> tuple[Manifest, int]:
        """Load everything and write the shards of one of several tasks to its part of the corpus."""
        corpus = expanded(self.out)
        with OutputFolder(path_of(corpus, task)) as folder:
            written = self.write(folder, self.read(), part=Part(corpus, share(shards, task, tasks)))
        with contextlib.suppress(OSError):  # it is not empty, unless the corpus had all these shards already
            folder.path.rmdir()
        return written
