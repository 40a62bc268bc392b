"""Writing a corpus: shards in a folder, a manifest beside them, and a run that can be killed and started again.

A shard is the unit of resumption. Which documents it holds and how they are decoded follows from settings, seeds and
shard number alone, and so does a noisy BAD's noise: a shard that was interrupted is written again, the same.
"""

import logging
from dataclasses import asdict

import torch

from cdgen.corpus import shards
from cdgen.corpus.seeds import fingerprint
from cdgen.engine.text import decode
from cdgen.environment import versions
from cdgen.errors import CorpusError, InputError
from cdgen.models.dtypes import dtype_name
from cdgen.storage import manifest as manifests
from cdgen.storage.progress import Progress
from cdgen_kernels.ops import implementation

log = logging.getLogger("cdgen")


def write_corpus(
    lm,
    seeds,
    folder,
    params,
    *,
    shard_size=1000,
    format="parquet",
    resume=True,
    split_documents=False,
    seeds_info=None,
    progress=None,
):
    """Continue every seed `params.n` times and write the documents to a folder, shard by shard.

    Args:
        lm: :class:`~cdgen.ContrastiveLM`; its `max_num_seqs` is the batch.
        seeds: list of :class:`~cdgen.corpus.seeds.Seed`. seeds_info: JSON object kept with them in the manifest.
        folder: an entered :class:`~cdgen.storage.folder.OutputFolder`. params: :class:`~cdgen.SamplingParams`.
        shard_size: documents of a shard. format: "parquet" or "jsonl.gz".
        resume: go on where an earlier run with the same settings stopped; else write the folder anew.
        split_documents: also write the texts cut at start and end of text, as documents-*.
        progress: :class:`~cdgen.storage.progress.Progress`.
    Returns:
        (the manifest, number of shards written by this run)
    Raises:
        InputError: the folder was begun with something else; a seed that cannot be continued.
        CorpusError: the folder cannot be written, or a finished shard was altered.
    """
    if shard_size < 1:
        raise InputError(f"shard_size = {shard_size}: must be 1 or more")
    if format not in shards.FORMATS:
        raise InputError(f"format = {format!r}: use {' or '.join(shards.FORMATS)}")
    if lm.tokenizer is None:
        raise InputError("a corpus is text, but there is no tokenizer; put one beside GOOD, or give tokenizer=")
    lm.check([seed.token_ids for seed in seeds], params, [f"seed {seed.id}" for seed in seeds])
    good, bad = lm.pair.good, lm.pair.bad if params.contrast_strength else None
    settings = asdict(params) | {
        "shard_size": shard_size,
        "format": format,
        "split_documents": split_documents,
        "batch_size": lm.max_num_seqs,
        "dtype": dtype_name(good.module.dtype),
        "device": good.device.type,
        "kv_cache_dtype": lm.kv_cache["kv_cache_dtype"] and dtype_name(lm.kv_cache["kv_cache_dtype"]),
    }
    models = {
        role: model and {"name": model.name, "fingerprint": model.fingerprint}
        for role, model in (("good", good), ("bad", bad))
    }
    seeds_info = {"fingerprint": fingerprint(seeds), "count": len(seeds)} | (seeds_info or {})
    manifest = _begin(folder, manifests.new(settings, models, seeds_info), resume)
    done = manifests.finished(folder, manifest)

    rows = [(seed, index) for seed in range(len(seeds)) for index in range(params.n)]
    missing = [number for number in range(-(-len(rows) // shard_size)) if number not in done]
    if not missing and manifest["complete"]:
        return manifest, 0
    run_number = _add_run(manifest, good.device.type)
    writer = _ShardWriter(lm, seeds, folder, params, format, split_documents, progress or Progress())
    writer.progress.begin(len(rows), sum(shard["rows"] for shard in done.values()))
    for number in missing:
        manifest["complete"] = False
        entry = writer.write(number, rows[number * shard_size : (number + 1) * shard_size])
        done[number] = entry | {"run": run_number}
        manifest["shards"] = [done[at] for at in sorted(done)]
        manifest["complete"] = number == missing[-1]
        manifests.write(folder, manifest)
        writer.progress.shard(entry["name"], entry["rows"], entry["new_tokens"])
    return manifest, len(missing)


def _begin(folder, manifest, resume):
    """The folder's manifest if it is one to go on with, else `manifest`, written."""
    if resume:
        old = manifests.read(folder)
        if old is not None:
            manifests.check_same(folder, old, manifest)
            return old
        if present := sorted(folder.path.glob("shard-*")):
            raise CorpusError(
                f"{folder.path}: holds {present[0].name} but no manifest.json; "
                "choose another folder, or --no-resume to write it anew"
            )
    else:
        folder.remove(manifests.NAME, "shard-[0-9]*", "documents-[0-9]*")
    manifests.write(folder, manifest)  # before the first shard: the settings are held from the start
    return manifest


def _add_run(manifest, device):
    run = versions() | {"implementation": implementation(device)[0], "threads": torch.get_num_threads()}
    number, changed = manifests.add_run(manifest, run)
    if changed:
        log.warning("%s changed since this corpus was begun; the texts to come may round otherwise", ", ".join(changed))
    return number


class _ShardWriter:
    def __init__(self, lm, seeds, folder, params, format, split_documents, progress):
        self.lm, self.seeds, self.folder, self.params = lm, seeds, folder, params
        self.format, self.split_documents, self.progress = format, split_documents, progress
        self.token_ids = [seed.token_ids for seed in seeds]
        self.schema = shards.ROW_WITH_LOGPROBS if params.logprobs else shards.ROW

    def write(self, number, rows):
        """Generate and write shard `number` of (seed, continuation) index pairs; returns its entry in the manifest."""
        progress = self.progress
        drawn = self.lm.continue_rows(self.token_ids, rows, self.params, progress.tokens, progress.batch)
        records = [self._record(*pair, text) for pair, text in zip(rows, drawn, strict=True)]
        ending = f"{number:05d}{shards.FORMATS[self.format]}"
        entry = {"number": number, "name": f"shard-{ending}", "rows": len(records)}
        entry["tokens"] = sum(len(record["token_ids"]) for record in records)
        entry["new_tokens"] = entry["tokens"] - sum(record["prompt_length"] for record in records)
        if self.split_documents:
            documents = [document for record in records for document in self._documents(record)]
            digest = self.folder.write(f"documents-{ending}", shards.encode(documents, shards.DOCUMENT, self.format))
            entry["documents"] = {"name": f"documents-{ending}", "rows": len(documents), "sha256": digest}
        entry["sha256"] = self.folder.write(entry["name"], shards.encode(records, self.schema, self.format))
        return entry

    def _record(self, seed, index, drawn):
        prompt = self.token_ids[seed]
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

    def _documents(self, record):
        marks = {*self.lm.pair.eos_token_ids, self.lm.bos_token_id}
        texts = (decode(self.lm.tokenizer, ids, True) for ids in shards.split_at(record["token_ids"], marks))
        kept = [text for text in texts if text.strip()]
        same = {"seed_id": record["seed_id"], "continuation": record["continuation"]}
        return [same | {"document": at, "text": text} for at, text in enumerate(kept)]
