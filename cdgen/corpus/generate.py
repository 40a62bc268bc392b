"""Generate a corpus from files, texts or token ids, as `cdgen generate` does on the command line."""

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from cdgen.corpus.manifest import check_folder
from cdgen.corpus.records import HUB
from cdgen.corpus.seeds import Seed, SeedText, encode_texts, prefix_length, read_texts
from cdgen.corpus.writer import check_options, write_corpus
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.sampling_params import SamplingParams, check_params
from cdgen.errors import InputError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import Progress, displayed
from cdgen.values import shown, switch

Seeds: TypeAlias = (
    str | os.PathLike[str] | Iterable[os.PathLike[str]] | Iterable[str] | Iterable[tuple[str, str]] | Iterable[Seed]
)


@dataclass(frozen=True)
class GeneratedCorpus:
    """A generated corpus.

    Attributes:
        folder: its folder, which `TrainConfig.synthetic` and `datasets.load_dataset` take.
        data: the folder of its shards; a row is a continuation.
        seeds: number of seeds.
        documents: number of continuations.
        tokens: number of tokens in prompts and continuations.
        new_tokens: number of tokens in continuations.
        errors: number of continuations that ended because no further token could be drawn.
        shards: number of shards.
        written: how many of them this call wrote; the others were finished before.
    """

    folder: Path
    data: Path
    seeds: int
    documents: int
    tokens: int
    new_tokens: int
    errors: int
    shards: int
    written: int

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, written: int) -> "GeneratedCorpus":
        """Return the corpus that a manifest describes."""
        counts = {name: manifest["counts"][name] for name in ("documents", "tokens", "new_tokens", "errors", "shards")}
        return cls(folder, folder / "data", manifest["seeds"]["count"], **counts, written=written)


def generate_corpus(
    lm: ContrastiveLM,
    seeds: Seeds,
    out: str | os.PathLike[str],
    params: SamplingParams | None = None,
    *,
    field: str = "text",
    prefix_tokens: int | None = None,
    chunk_words: int | None = None,
    parse_special: bool = False,
    shard_size: int = 1000,
    format: str = "parquet",
    split_documents: bool = False,
    resume: bool = True,
    progress: Progress | bool | None = None,
) -> GeneratedCorpus:
    """Continue every seed `params.n` times, and write the continuations to a corpus folder.

    Args:
        lm: the models; `lm.max_num_seqs` sequences are decoded at the same time.
        seeds: a path or a list of `Path` objects, which are read as `cdgen generate --seeds` reads them; or a list of
            strings (named by their indices), of pairs (id, text), or of :class:`~cdgen.Seed`. Given ids key the noise.
        out: the corpus folder.
        params: how continuations are sampled; default: `SamplingParams()`.
        field: field of each record that holds the text, for seeds from files.
        prefix_tokens: tokens to keep of each seed; default: 20 with `chunk_words`, otherwise all.
        chunk_words: cut the documents of files into chunks of at least this many words, each of which is a seed.
        parse_special: read special tokens in the seeds, such as "</s>", instead of taking them as text.
        shard_size, format: continuations per shard, and the shards' file format, "parquet" or "jsonl.gz".
        split_documents: also cut the texts at start-of-text and end-of-text tokens, and write the pieces separately.
        resume: if an earlier call with the same arguments was interrupted, resume it without duplicate or missing rows;
            if False, replace the corpus in the folder as soon as a new shard is finished.
        progress: True shows a progress bar, as in :meth:`cdgen.ContrastiveLM.generate`; or a display of your own.
    Returns:
        The corpus: the folder of its shards, and the number of its documents and tokens.
    Raises:
        InputError, CorpusError: see :func:`~cdgen.corpus.writer.write_corpus`.
    """
    if not isinstance(lm, ContrastiveLM):
        raise InputError(f"lm = {shown(lm)}: must be a ContrastiveLM")
    check_params(params := SamplingParams() if params is None else params)
    check_options(shard_size, format)
    prefix_tokens, parse_special = prefix_length(prefix_tokens, chunk_words), switch("parse_special", parse_special)
    reading = {"field": field, "prefix_tokens": prefix_tokens, "chunk_words": chunk_words}
    listed, about = _listed(seeds, reading | {"parse_special": parse_special})
    with OutputFolder(out) as folder, displayed(progress) as display:
        check_folder(folder)
        outcome = write_corpus(
            lm,
            _encoded(lm, listed, params, prefix_tokens, parse_special),
            folder,
            params,
            shard_size=shard_size,
            format=format,
            resume=resume,
            split_documents=split_documents,
            seeds_info=about,
            progress=display,
        )
        return GeneratedCorpus.of(folder.path, *outcome)


def _listed(seeds: Seeds, reading: dict[str, Any]) -> tuple[Sequence[SeedText | Seed], dict[str, Any]]:
    """Return seeds as texts or token ids, and how they were read if they are from files, as the manifest records it."""
    # Sets have no order, and iterating over a dict would leave out its values.
    if not isinstance(seeds, str | os.PathLike | Iterable) or isinstance(seeds, bytes | Mapping | Set):
        raise InputError(f"seeds = {shown(seeds)}: give a path, or a list of strings, (id, text) pairs or Seed objects")
    given: list[Any] = [seeds] if isinstance(seeds, str | os.PathLike) else list(seeds)
    if isinstance(seeds, str) or (given and all(isinstance(each, os.PathLike) for each in given)):
        texts, dropped = read_texts(given, field=reading["field"], chunk_words=reading["chunk_words"])
        paths = [os.fspath(path) for path in given]
        return texts, {"paths": paths, "dropped": dropped, **reading}
    if reading["chunk_words"] is not None:
        raise InputError("chunk_words: cuts the documents of files, but the seeds are not files")
    return [_seed(index, each) for index, each in enumerate(given)], {}


def _seed(index: int, given: Any) -> SeedText | Seed:
    """Return one seed that is not a file."""
    if isinstance(given, str):
        if given.startswith(HUB) or os.path.isfile(given):
            raise InputError(f"seeds: {shown(given)} is a file; to read it, give seeds=Path({shown(given)})")
        return SeedText(str(index), given, named=False)
    if isinstance(given, Seed):
        return given
    if isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(each, str) for each in given):
        return SeedText(*given)
    raise InputError(f"seeds: item {index} is {shown(given)}; give a string, a pair (id, text) or a Seed")


def _encoded(
    lm: ContrastiveLM,
    seeds: Sequence[SeedText | Seed],
    params: SamplingParams,
    prefix_tokens: int | None,
    parse_special: bool,
) -> list[Seed]:
    """Return seeds as token ids, cut to `prefix_tokens`."""
    prompt_ids = partial(lm.prompt_ids, parse_special=parse_special)
    texts = [each for each in seeds if isinstance(each, SeedText)]
    longest = lm.longest_prompt(params)
    encoded = iter(encode_texts(texts, prompt_ids, prefix_tokens=prefix_tokens, longest=longest) if texts else ())
    return [
        next(encoded) if isinstance(each, SeedText) else replace(each, token_ids=each.token_ids[:prefix_tokens])
        for each in seeds
    ]
