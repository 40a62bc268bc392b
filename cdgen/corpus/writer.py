"""Write a generated corpus: numbered shards in a folder, with a manifest that lists them.

The content of a shard depends only on the settings, the seeds and the shard's number. Documents are decoded as one
stream, and a thread writes each shard whose documents are finished. The finished documents of all other shards are kept
in a journal, so an interrupted run resumes where it stopped.
"""

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from cdgen.corpus import card, parts, shards
from cdgen.corpus import manifest as manifests
from cdgen.corpus.background import Background
from cdgen.corpus.decoding import ShardDecoder
from cdgen.corpus.journal import Journal
from cdgen.corpus.manifest import ShardEntry
from cdgen.corpus.parts import Part
from cdgen.corpus.seeds import Seed, fingerprint
from cdgen.corpus.settings import describe
from cdgen.corpus.shard_files import ShardFiles
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.requests import Prompts
from cdgen.engine.sampling_params import SamplingParams, check_params
from cdgen.environment import versions
from cdgen.errors import InputError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest, add_environment
from cdgen.storage.progress import Progress, Silent
from cdgen.values import integer, shown, switch
from cdgen_kernels import implementation

log = logging.getLogger("cdgen")

_LARGEST_SHARD = 10**6  # documents; a shard is kept in memory until it is written


def write_corpus(
    lm: ContrastiveLM,
    seeds: list[Seed],
    folder: OutputFolder,
    params: SamplingParams,
    *,
    shard_size: int = 1000,
    format: str = "parquet",
    resume: bool = True,
    split_documents: bool = False,
    seeds_info: dict[str, Any] | None = None,
    part: Part | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, int]:
    """Continue every seed `params.n` times and write the documents to a folder, shard by shard.

    Args:
        lm: the models; `lm.max_num_seqs` is the batch size.
        seeds: the prompts.
        folder: the output folder, as an entered context.
        params: how continuations are sampled.
        shard_size: documents per shard.
        format: "parquet" or "jsonl.gz".
        resume: resume a corpus that was started with the same settings; if False, start a new one. Its first shard
            replaces the old corpus.
        split_documents: also cut the texts at every start-of-text and end-of-text token, and write the pieces to files
            in the folder `_documents`.
        seeds_info: a JSON object to keep with the seeds in the manifest; `paths` are the files they were read from.
        part: write only these shards; `folder` is that of the part, see :mod:`cdgen.corpus.parts`.
        progress: receives the documents that are finished and the tokens that are drawn.
    Returns:
        (the manifest, number of shards that this call wrote)
    Raises:
        InputError: the folder has a corpus of other settings, models or seeds; or a seed cannot be continued.
        CorpusError: the folder cannot be written, holds files that are in the way, or a finished shard was altered.
    """
    shard_size = check_options(shard_size, format)
    resume, split_documents = switch("resume", resume), switch("split_documents", split_documents)
    seeds = _checked_seeds(lm, seeds, params)
    own = {"shard_size": shard_size, "format": format, "split_documents": split_documents}
    about = _about(seeds) | (seeds_info or {})
    total = len(seeds) * params.n
    count = manifests.shard_count(total, shard_size)
    manifest, done, others = _begin(folder, describe(lm, params, own, about), resume, part, count)
    if missing := count - len(others):
        environment, progress = _add_environment(manifest, lm), progress or Silent()
        files = ShardFiles(lm, seeds, params, shard_size, format, split_documents)
        prompts = Prompts([seed.token_ids for seed in seeds], (seed.own_id for seed in seeds))
        with contextlib.closing(Journal(folder, manifests.fingerprint(manifest))) as journal:
            finished = journal.read(others) if resume else {}
            ready = sum(shard["rows"] for shard in done.values())
            last = total - (count - 1) * shard_size  # rows of the last shard
            left = missing * shard_size - (0 if count - 1 in others else shard_size - last)
            before = ready + sum(map(len, finished.values()))
            progress.begin(ready + left, before, unit="documents", verb="to write", tokens_per_unit=params.max_tokens)
            writer = _ShardWriter(folder, manifest, done, None if part else count, environment, files, journal)
            with Background(writer.write, progress.note) as background:
                ShardDecoder(lm, prompts, params, shard_size, finished, journal, progress, background).run(others)
        files.warn_of_errors()
    return manifest, missing


def _about(seeds: list[Seed]) -> dict[str, Any]:
    """Return what the manifest records of the seeds themselves."""
    return {"fingerprint": fingerprint(seeds), "count": len(seeds), "named": sum(seed.named for seed in seeds)}


def _begin(
    folder: OutputFolder, manifest: Manifest, resume: bool, part: Part | None, count: int
) -> tuple[Manifest, dict[int, ShardEntry], set[int]]:
    """Return the manifest to resume from, the entries of finished shards, and the numbers of all shards not to write.

    If there are none to write, the corpus is marked as complete.
    """
    _warn_of_equal_models(manifest)
    others = set() if part is None else {*range(count)} - part.missing(manifest)
    if part is None:
        (parts.gather if resume else parts.discard)(folder)
    manifest = manifests.begin(folder, manifest, resume, manifest["seeds"].get("paths", ()))
    done = {number: entry for number, entry in manifests.finished(folder, manifest).items() if number < count}
    others |= done.keys()
    if part is None and len(others) == count:
        manifests.complete(folder, manifest)
        card.write(folder, manifest)
    return manifest, done, others


def check_options(shard_size: Any, format: str) -> int:
    """Return the shard size as an int; raise InputError if it or the format cannot be used."""
    if format not in tuple(shards.FORMATS):
        raise InputError(f"format = {format!r}: use {' or '.join(shards.FORMATS)}")
    return integer("shard_size", shard_size, 1, _LARGEST_SHARD)


def _checked_seeds(lm: ContrastiveLM, seeds: Iterable[Seed], params: SamplingParams) -> list[Seed]:
    """Return seeds with lists of token ids; raise InputError if a corpus cannot be written from them."""
    check_params(params)
    if params.top_logprobs:
        raise InputError(
            f"top_logprobs = {params.top_logprobs}: a corpus has columns for drawn tokens alone; use logprobs=True"
        )
    seeds = list(seeds)
    if not seeds:
        raise InputError("seeds: there are none")
    if lm.tokenizer is None:
        raise InputError("tokenizer: none was found, but a corpus is text; put one beside GOOD, or pass tokenizer=")
    found: dict[str, Seed] = {}
    for seed in seeds:
        if not isinstance(seed, Seed) or not isinstance(seed.id, str):
            raise InputError(f"seeds: {shown(seed)} is not a Seed with a text as its id")
        try:
            seed.id.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"seed {seed.id!r}: its id has half of a surrogate pair") from error
        if seed.id in found:
            raise InputError(f"seed {seed.id}: another seed has the same id")
        found[seed.id] = replace(seed, token_ids=lm.prompt_ids(seed.token_ids, f"seed {seed.id}"))
    lm.pair.check([seed.token_ids for seed in found.values()], params, [f"seed {name}" for name in found])
    return list(found.values())


def _warn_of_equal_models(manifest: Manifest) -> None:
    good, bad = manifest["models"]["good"], manifest["models"]["bad"]
    if bad is not None and good["fingerprint"] == bad["fingerprint"]:
        log.warning(
            "%s and %s are the same model, so all candidates have the same score; choose another BAD",
            *(good["name"], bad["name"]),
        )


def _add_environment(manifest: Manifest, lm: ContrastiveLM) -> int:
    """Return the number of the present environment in the manifest, and warn if it differs from the last one."""
    implemented, _ = implementation(lm.pair.good.device.type)
    environment = versions() | {"implementation": implemented, "threads": torch.get_num_threads()}
    number, changed = add_environment(manifest, environment)
    if changed:
        log.warning(
            "%s changed since this corpus was started; the remaining rows may differ by floating-point rounding",
            ", ".join(changed),
        )
    return number


class _ShardWriter:
    """Writes shards and the manifest that lists them, while another thread decodes documents.

    The corpus is complete once `count` shards are done; a part of a corpus, whose count is None, never is.
    """

    def __init__(
        self,
        folder: OutputFolder,
        manifest: Manifest,
        done: dict[int, ShardEntry],
        count: int | None,
        environment: int,
        files: ShardFiles,
        journal: Journal,
    ) -> None:
        self._folder, self._manifest, self._done, self._count = folder, manifest, done, count
        self._environment, self._files, self._journal = environment, files, journal

    def write(self, number: int, outputs: list[CompletionOutput]) -> str:
        """Write a shard from its continuations; return a note for the user."""
        entry, content = self._files.make(number, outputs)
        entry["environment"] = self._environment
        done = self._done | {number: entry}
        manifests.write_shard(self._folder, self._manifest, done, content, complete=len(done) == self._count)
        self._done = done  # only if it was written: otherwise no manifest may list this shard
        self._journal.end(number)
        card.write(self._folder, self._manifest)
        return f"{entry['name']}: {entry['rows']} documents, {entry['new_tokens']} new tokens"
