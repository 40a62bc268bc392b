"""The files of a shard and its entry in the manifest, made from the shard's continuations."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

from cdgen.corpus import manifest as manifests
from cdgen.corpus import shards
from cdgen.corpus.manifest import FileEntry, ShardEntry
from cdgen.corpus.seeds import Seed
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.text import decode_parts
from cdgen.models.tokenizers import decode

log = logging.getLogger("cdgen")


def record(lm: ContrastiveLM, seed: Seed, drawn: CompletionOutput, skip_special_tokens: bool) -> dict[str, Any]:
    """Return the row of a continuation: the columns of :data:`cdgen.corpus.shards.ROW`, and its log-probabilities.

    Args:
        lm: the models, with a tokenizer.
        seed: the prompt.
        drawn: its continuation.
        skip_special_tokens: leave special tokens out of the text.
    """
    assert lm.tokenizer is not None and drawn.text is not None, "rows have a text"
    before, _ = decode_parts(lm.tokenizer, seed.token_ids, drawn.token_ids, skip_special_tokens)
    row = {
        "text": before + drawn.text,
        "token_ids": [*seed.token_ids, *drawn.token_ids],
        "prompt_length": len(seed.token_ids),
        "seed_id": seed.id,
        "continuation": drawn.index,
        "finish_reason": drawn.finish_reason,
    }
    if drawn.logprobs is not None:
        columns = zip(*drawn.logprobs, strict=True) if drawn.logprobs else ([], [], [])
        row |= {name: list(values) for name, values in zip(shards.LOGPROBS, columns, strict=True)}
    return row


class ShardFiles:
    """Makes the files of shards. Equal continuations give equal bytes.

    Args:
        lm: the models, with a tokenizer.
        seeds: the prompts, each continued `params.n` times.
        params: how the continuations were sampled.
        shard_size: rows per shard; the last shard may have fewer.
        format: "parquet" or "jsonl.gz".
        split_documents: also make a file of the texts, cut at every start-of-text and end-of-text token.
    """

    def __init__(
        self,
        lm: ContrastiveLM,
        seeds: Sequence[Seed],
        params: SamplingParams,
        shard_size: int,
        format: str,
        split_documents: bool,
    ) -> None:
        self._lm, self._seeds, self._params, self._shard_size = lm, seeds, params, shard_size
        self._format, self._split_documents = format, split_documents
        self._errors: dict[int, str] = {}  # why a row of the corpus ended with an error
        self._schema = shards.ROW_WITH_LOGPROBS if params.logprobs else shards.ROW

    def make(self, number: int, outputs: Sequence[CompletionOutput]) -> tuple[ShardEntry, dict[str, bytes]]:
        """Return a shard's entry in the manifest, and the content of its files by name.

        Args:
            number: the shard's number.
            outputs: its continuations, row by row.
        """
        rows = range(number * self._shard_size, number * self._shard_size + len(outputs))
        seeds = (self._seeds[row // self._params.n] for row in rows)
        records = [
            record(self._lm, seed, output, self._params.skip_special_tokens)
            for seed, output in zip(seeds, outputs, strict=True)
        ]
        errors = {
            row: each.error or "" for row, each in zip(rows, outputs, strict=True) if each.finish_reason == "error"
        }
        self._errors |= errors
        tokens = sum(len(record["token_ids"]) for record in records)
        name = manifests.shard_name(number, self._format)
        content, arrow_bytes = shards.encode(records, self._schema, self._format)
        files = {name: content}
        entry: ShardEntry = {
            "number": number,
            "name": name,
            "rows": len(records),
            "tokens": tokens,
            "new_tokens": tokens - sum(record["prompt_length"] for record in records),
            "errors": len(errors),
            "arrow_bytes": arrow_bytes,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if self._split_documents:
            documents = [document for record in records for document in self._documents(record)]
            name = manifests.documents_name(number, self._format)
            files[name], arrow_bytes = shards.encode(documents, shards.DOCUMENT, self._format)
            digest = hashlib.sha256(files[name]).hexdigest()
            about: FileEntry = {"name": name, "rows": len(documents), "arrow_bytes": arrow_bytes, "sha256": digest}
            entry["documents"] = about
        return entry, files

    def _documents(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Cut a record's tokens at every start and end of text; leave out documents that are only whitespace."""
        assert self._lm.tokenizer is not None, "write_corpus requires a tokenizer"
        marks = {*self._lm.pair.eos_token_ids, self._lm.bos_token_id}
        texts = (decode(self._lm.tokenizer, ids, True) for ids in shards.split_at(record["token_ids"], marks))
        kept = [text for text in texts if text.strip()]
        same = {"seed_id": record["seed_id"], "continuation": record["continuation"]}
        return [same | {"document": at, "text": text} for at, text in enumerate(kept)]

    def warn_of_errors(self) -> None:
        """Warn about the documents that ended because no token could be drawn."""
        if self._errors:
            rows = sorted(self._errors)
            seeds = list(dict.fromkeys(self._seeds[row // self._params.n].id for row in rows))
            shown = ", ".join(seeds[:5]) + (f" and {len(seeds) - 5} more" if len(seeds) > 5 else "")
            log.warning(
                "%d documents end early, with the finish_reason error: %s; their seeds are %s",
                *(len(rows), self._errors[rows[0]], shown),
            )
