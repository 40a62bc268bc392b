"""Write a generated corpus: numbered shards in a folder, with a manifest that lists them.

Work resumes at shard boundaries. The content of a shard, including the noise of a dropout BAD, depends only on the
settings, the seeds and the shard's number, so an interrupted shard is rewritten with the same bytes.
"""

import logging
from dataclasses import asdict
from typing import Any

import torch

from cdgen.corpus import manifest as manifests
from cdgen.corpus import shards
from cdgen.corpus.manifest import FileEntry, ShardEntry
from cdgen.corpus.seeds import Seed, fingerprint
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.text import decode
from cdgen.environment import versions
from cdgen.errors import InputError
from cdgen.models.dtypes import dtype_name
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest, add_environment
from cdgen.storage.progress import Progress, Silent
from cdgen_kernels import implementation

log = logging.getLogger("cdgen")


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
        resume: resume a corpus that was started with the same settings; if False, remove the folder's shards first.
        split_documents: also cut the texts at every start-of-text and end-of-text token, and write the pieces to files
            named documents-*.
        seeds_info: a JSON object to keep with the seeds in the manifest.
        progress: receives the documents that are finished and the tokens that are drawn.
    Returns:
        (the manifest, number of shards that this call wrote)
    Raises:
        InputError: the corpus was started with other settings, models or seeds; or a seed cannot be continued.
        CorpusError: the folder cannot be written, or a finished shard was altered.
    """
    _check(lm, seeds, params, shard_size, format)
    own = {"shard_size": shard_size, "format": format, "split_documents": split_documents}
    seeds_info = {"fingerprint": fingerprint(seeds), "count": len(seeds)} | (seeds_info or {})
    manifest = manifests.begin(folder, _describe(lm, params, own, seeds_info), resume)
    done = manifests.finished(folder, manifest)

    rows = [(seed, index) for seed in range(len(seeds)) for index in range(params.n)]
    missing = [number for number in range(-(-len(rows) // shard_size)) if number not in done]
    if not missing and manifest["complete"]:
        return manifest, 0
    environment = _add_environment(manifest, lm)
    progress = progress or Silent()
    writer = _ShardWriter(lm, seeds, folder, params, format, split_documents, progress)
    before = sum(shard["rows"] for shard in done.values())
    progress.begin(len(rows), before, unit="documents", verb="to write")
    for number in missing:
        manifest["complete"] = False
        entry = writer.write(number, rows[number * shard_size : (number + 1) * shard_size])
        done[number] = {**entry, "environment": environment}
        manifest["shards"] = [done[at] for at in sorted(done)]
        manifest["complete"] = number == missing[-1]
        manifests.write(folder, manifest)
        progress.note(f"{entry['name']}: {entry['rows']} documents, {entry['new_tokens']} new tokens")
    return manifest, len(missing)


def _check(lm: ContrastiveLM, seeds: list[Seed], params: SamplingParams, shard_size: int, format: str) -> None:
    """Raise InputError if a corpus cannot be written with these arguments."""
    if shard_size < 1:
        raise InputError(f"shard_size = {shard_size}: must be 1 or more")
    if format not in shards.FORMATS:
        raise InputError(f"format = {format!r}: use {' or '.join(shards.FORMATS)}")
    if lm.tokenizer is None:
        raise InputError("tokenizer: none was found, but a corpus is text; put one beside GOOD, or pass tokenizer=")
    lm.check([seed.token_ids for seed in seeds], params, [f"seed {seed.id}" for seed in seeds])


def _describe(lm: ContrastiveLM, params: SamplingParams, own: dict[str, Any], seeds: dict[str, Any]) -> Manifest:
    """Return the manifest of a corpus without shards."""
    good, bad = lm.pair.good, lm.pair.bad if params.contrast_strength else None
    cache_dtype = lm.kv_cache["kv_cache_dtype"]
    settings = asdict(params) | own
    settings |= {
        "batch_size": lm.max_num_seqs,
        "dtype": dtype_name(good.module.dtype),
        "device": good.device.type,
        "kv_cache_dtype": cache_dtype and dtype_name(cache_dtype),
    }
    models = {
        role: model and {"name": model.name, "fingerprint": model.fingerprint}
        for role, model in (("good", good), ("bad", bad))
    }
    return manifests.new(settings, models, seeds)


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
    """Generates and writes one shard after another."""

    def __init__(
        self,
        lm: ContrastiveLM,
        seeds: list[Seed],
        folder: OutputFolder,
        params: SamplingParams,
        format: str,
        split_documents: bool,
        progress: Progress,
    ) -> None:
        self.lm, self.seeds, self.folder, self.params = lm, seeds, folder, params
        self.format, self.split_documents, self.progress = format, split_documents, progress
        self.token_ids = [seed.token_ids for seed in seeds]
        self.schema = shards.ROW_WITH_LOGPROBS if params.logprobs else shards.ROW

    def write(self, number: int, rows: list[tuple[int, int]]) -> ShardEntry:
        """Write the shard of these (seed, continuation) index pairs; return its entry in the manifest."""
        progress = self.progress
        drawn = self.lm.continue_sequences(self.token_ids, rows, self.params, progress.tokens, progress.advance)
        records = [self._record(*pair, output) for pair, output in zip(rows, drawn, strict=True)]
        tokens = sum(len(record["token_ids"]) for record in records)
        ending = f"{number:05d}{shards.FORMATS[self.format]}"
        entry: ShardEntry = {
            "number": number,
            "name": f"shard-{ending}",
            "rows": len(records),
            "tokens": tokens,
            "new_tokens": tokens - sum(record["prompt_length"] for record in records),
        }
        if self.split_documents:
            entry["documents"] = self._write_documents(f"documents-{ending}", records)
        entry["sha256"] = self.folder.write(entry["name"], shards.encode(records, self.schema, self.format))
        return entry

    def _record(self, seed: int, index: int, drawn: CompletionOutput) -> dict[str, Any]:
        prompt = self.token_ids[seed]
        assert drawn.text is not None, "there is a tokenizer"
        record = {
            "text": decode(self.lm.tokenizer, prompt, self.params.skip_special_tokens) + drawn.text,
            "token_ids": [*prompt, *drawn.token_ids],
            "prompt_length": len(prompt),
            "seed_id": self.seeds[seed].id,
            "continuation": index,
            "finish_reason": drawn.finish_reason,
        }
        if drawn.logprobs is not None:
            columns = zip(shards.LOGPROBS, zip(*drawn.logprobs, strict=True), strict=True)
            record |= {name: list(values) for name, values in columns}
        return record

    def _write_documents(self, name: str, records: list[dict[str, Any]]) -> FileEntry:
        documents = [document for record in records for document in self._documents(record)]
        digest = self.folder.write(name, shards.encode(documents, shards.DOCUMENT, self.format))
        return {"name": name, "rows": len(documents), "sha256": digest}

    def _documents(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Cut a record's tokens at every start and end of text; leave out documents that are only whitespace."""
        marks = {*self.lm.pair.eos_token_ids, self.lm.bos_token_id}
        texts = (decode(self.lm.tokenizer, ids, True) for ids in shards.split_at(record["token_ids"], marks))
        kept = [text for text in texts if text.strip()]
        same = {"seed_id": record["seed_id"], "continuation": record["continuation"]}
        return [same | {"document": at, "text": text} for at, text in enumerate(kept)]
