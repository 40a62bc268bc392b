"""Write a generated corpus: numbered shards in a folder, with a manifest that lists them.

The content of a shard depends only on the settings, the seeds and the shard's number. Finished documents of an
unfinished shard are kept in a journal, so an interrupted run resumes where it stopped. Only the noise of a dropout BAD
depends on the batch; a static batch is therefore kept as a whole or decoded again.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from cdgen.corpus import manifest as manifests
from cdgen.corpus import shards
from cdgen.corpus.journal import Journal
from cdgen.corpus.manifest import ShardEntry
from cdgen.corpus.seeds import Seed, fingerprint
from cdgen.corpus.settings import describe
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.requests import Prompts, batches
from cdgen.engine.sampling_params import SamplingParams, check_params
from cdgen.engine.text import decode, decode_parts
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
    about: dict[str, Any] = {"fingerprint": fingerprint(seeds), "count": len(seeds)} | (seeds_info or {})
    manifest = manifests.begin(folder, describe(lm, params, own, about), resume, about.get("paths", ()))
    total = len(seeds) * params.n
    count = -(-total // shard_size)
    done = {number: entry for number, entry in manifests.finished(folder, manifest).items() if number < count}
    if not (missing := count - len(done)):
        manifests.complete(folder, manifest)
        return manifest, 0
    environment, progress = _add_environment(manifest, lm), progress or Silent()
    with contextlib.closing(Journal(folder, manifests.fingerprint(manifest), resume)) as journal:
        writer = _ShardWriter(lm, seeds, params, format, split_documents, progress, journal)
        before = sum(shard["rows"] for shard in done.values()) + len(journal.outputs)
        progress.begin(total, before, unit="documents", verb="to write", tokens_per_unit=params.max_tokens)
        for number in _missing(count, done, journal.shard):
            entry, files = writer.shard(number, range(number * shard_size, min((number + 1) * shard_size, total)))
            done[number] = entry | {"environment": environment}
            manifests.write_shard(folder, manifest, done, files, complete=len(done) == count)
            journal.end()
            progress.note(f"{entry['name']}: {entry['rows']} documents, {entry['new_tokens']} new tokens")
    writer.warn_of_errors()
    return manifest, missing


def check_options(shard_size: Any, format: str) -> int:
    """Return the shard size as an int; raise InputError if it or the format cannot be used."""
    if format not in tuple(shards.FORMATS):
        raise InputError(f"format = {format!r}: use {' or '.join(shards.FORMATS)}")
    return integer("shard_size", shard_size, 1, _LARGEST_SHARD)


def _checked_seeds(lm: ContrastiveLM, seeds: Iterable[Seed], params: SamplingParams) -> list[Seed]:
    """Return seeds with lists of token ids; raise InputError if a corpus cannot be written from them."""
    check_params(params)
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
        found[seed.id] = Seed(seed.id, lm.prompt_ids(seed.token_ids, f"seed {seed.id}"))
    lm.check([seed.token_ids for seed in found.values()], params, [f"seed {name}" for name in found])
    return list(found.values())


def _missing(count: int, done: dict[int, ShardEntry], first: int | None) -> Iterator[int]:
    """Iterate over the numbers of missing shards, beginning with `first`, the shard of the journal, if any."""
    if first is not None and first < count and first not in done:
        yield first
    yield from (number for number in range(count) if number not in done)


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
    """Generates one shard after another."""

    def __init__(
        self,
        lm: ContrastiveLM,
        seeds: list[Seed],
        params: SamplingParams,
        format: str,
        split_documents: bool,
        progress: Progress,
        journal: Journal,
    ) -> None:
        self.lm, self.seeds, self.params = lm, seeds, params
        self.format, self.split_documents, self.progress, self.journal = format, split_documents, progress, journal
        self.prompts = Prompts([seed.token_ids for seed in seeds])
        self.schema = shards.ROW_WITH_LOGPROBS if params.logprobs else shards.ROW
        self.errors: list[tuple[str, str]] = []  # (seed id, reason) of each row that ended with an error

    def shard(self, number: int, rows: range) -> tuple[ShardEntry, dict[str, bytes]]:
        """Return a shard's entry in the manifest, and its files; `rows` are its rows in the corpus."""
        pairs = [divmod(row, self.params.n) for row in rows]  # (seed, continuation)
        outputs = self._outputs(number, pairs)
        records = [self._record(*pair, output) for pair, output in zip(pairs, outputs, strict=True)]
        tokens = sum(len(record["token_ids"]) for record in records)
        name, content = manifests.shard_name(number, self.format), shards.encode(records, self.schema, self.format)
        files = {name: content}
        entry: ShardEntry = {
            "number": number,
            "name": name,
            "rows": len(records),
            "tokens": tokens,
            "new_tokens": tokens - sum(record["prompt_length"] for record in records),
            "errors": sum(output.finish_reason == "error" for output in outputs),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if self.split_documents:
            documents = [document for record in records for document in self._documents(record)]
            name = manifests.documents_name(number, self.format)
            files[name] = content = shards.encode(documents, shards.DOCUMENT, self.format)
            digest = hashlib.sha256(content).hexdigest()
            entry["documents"] = {"name": name, "rows": len(documents), "sha256": digest}
        return entry, files

    def _outputs(self, number: int, pairs: list[tuple[int, int]]) -> list[CompletionOutput]:
        """Return the continuations of a shard: those in the journal, and the others, which are decoded now."""
        known = dict(self.journal.begin(number))
        left = [place for place in range(len(pairs)) if place not in known]
        if self.lm.static_reason:  # a batch is decoded as a whole, since its noise may depend on the batch
            whole = batches(range(len(pairs)), self.params.n, self.lm.max_num_seqs)
            left = [place for batch in whole if not known.keys() >= set(batch) for place in batch]

        def finished(at: int, output: CompletionOutput) -> None:
            if left[at] not in known:
                self.journal.add(left[at], output)
                self.progress.advance(1)

        drawn = self.lm.continue_sequences(
            self.prompts, [pairs[place] for place in left], self.params, self.progress.tokens, finished
        )
        outputs = known | dict(zip(left, drawn, strict=True))
        return [outputs[place] for place in range(len(pairs))]

    def _record(self, seed: int, index: int, drawn: CompletionOutput) -> dict[str, Any]:
        prompt = self.prompts.token_ids[seed]
        assert self.lm.tokenizer is not None and drawn.text is not None, "write_corpus requires a tokenizer"
        before, _ = decode_parts(self.lm.tokenizer, prompt, drawn.token_ids, self.params.skip_special_tokens)
        record = {
            "text": before + drawn.text,
            "token_ids": [*prompt, *drawn.token_ids],
            "prompt_length": len(prompt),
            "seed_id": self.seeds[seed].id,
            "continuation": index,
            "finish_reason": drawn.finish_reason,
        }
        if drawn.finish_reason == "error":
            self.errors.append((self.seeds[seed].id, drawn.error or ""))
        if drawn.logprobs is not None:
            columns = zip(*drawn.logprobs, strict=True) if drawn.logprobs else ([], [], [])
            record |= {name: list(values) for name, values in zip(shards.LOGPROBS, columns, strict=True)}
        return record

    def _documents(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Cut a record's tokens at every start and end of text; leave out documents that are only whitespace."""
        assert self.lm.tokenizer is not None, "write_corpus requires a tokenizer"
        marks = {*self.lm.pair.eos_token_ids, self.lm.bos_token_id}
        texts = (decode(self.lm.tokenizer, ids, True) for ids in shards.split_at(record["token_ids"], marks))
        kept = [text for text in texts if text.strip()]
        same = {"seed_id": record["seed_id"], "continuation": record["continuation"]}
        return [same | {"document": at, "text": text} for at, text in enumerate(kept)]

    def warn_of_errors(self) -> None:
        """Warn about the documents that ended because no token could be drawn."""
        if self.errors:
            seeds = list(dict.fromkeys(seed for seed, _ in self.errors))
            shown = ", ".join(seeds[:5]) + (f" and {len(seeds) - 5} more" if len(seeds) > 5 else "")
            log.warning(
                "%d documents end early, with the finish_reason error: %s; their seeds are %s",
                *(len(self.errors), self.errors[0][1], shown),
            )
