"""The text of a dataset card, in Markdown: what the corpus holds, and how it was made."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import escaped
from cdgen.storage.manifest import Manifest
from cdgen.wording import counted, joined

_COLUMNS = {
    "text": "the document: the prompt and its continuation",
    "token_ids": "the tokens of the prompt and of the continuation",
    "prompt_length": "number of tokens in the prompt",
    "seed_id": "name of the seed, the text whose beginning is the prompt",
    "continuation": "number of the continuation among those of its seed, from 0",
    "finish_reason": "why the continuation ends: `stop` (end of text, or a stop string), `length` or `error`",
}
_LOGPROB_COLUMNS = {
    "logprob": "log-probability of each token of the continuation under the distribution that it was drawn from",
    "good_logprob": "log-probability of each token under GOOD",
    "bad_logprob": "log-probability of each token under BAD",
}
_DOCUMENT_COLUMNS = {
    "seed_id": "name of the seed",
    "continuation": "number of the continuation among those of its seed, from 0",
    "document": "number of the document within the continuation's text, from 0",
    "text": "the document: text between two marks of the start or end of a text",
}
_PREPARED_COLUMNS = {
    "id": "the document's source, its file, and its own id or its number in the file",
    "source": "name of the source",
    "text": "the document",
}
# Settings that a card always states; others only if they differ from their defaults.
_ALWAYS = ("n", "max_tokens", "alpha", "contrast_strength", "temperature", "seed")
_END = """
The manifest lists all files with their checksums; `cdgen corpus verify FOLDER` checks them.

## Licence

This card names no licence. If you publish the corpus, choose one in the field `license` at the top of this file; the
terms of {what} may apply."""


def generated(manifest: Manifest) -> Iterator[str]:
    """Yield the lines of the card of a generated corpus."""
    counts, settings = manifest["counts"], manifest["settings"]
    yield "# Synthetic corpus"
    yield ""
    models = "a language model" if manifest["models"]["bad"] is None else "two language models"
    yield f"{counted(counts['documents'], 'text')} that cdgen wrote by continuing {_number_of_seeds(manifest)} with"
    yield f"{models} ([arXiv 2510.08245](https://arxiv.org/abs/2510.08245)). They have"
    yield f"{counted(counts['tokens'], 'token')}, of which {counts['new_tokens']:,} are new."
    if counts["errors"]:
        yield f"{counted(counts['errors'], 'text')} end early because no token could be drawn, with the `finish_reason`"
        yield "`error`."
    yield from _reading("Rows")
    yield from _table("column | content", _COLUMNS | (_LOGPROB_COLUMNS if settings.get("logprobs") else {}))
    if rows := sum(shard["documents"]["rows"] for shard in manifest["shards"] if "documents" in shard):
        yield from _reading("Documents", '"documents", ')
        yield f"The same texts, cut into {counted(rows, 'document')} at every token that starts or ends a text."
        yield ""
        yield from _table("column | content", _DOCUMENT_COLUMNS)
    yield "\n## How it was made\n"
    yield from _models(manifest["models"])
    yield from _sampling(settings)
    yield from _seeds(manifest["seeds"])
    yield from (_versions(environment) for environment in manifest["environments"])
    yield _END.format(what="the models and of the seeds")


def prepared(manifest: Manifest) -> Iterator[str]:
    """Yield the lines of the card of a prepared corpus."""
    counts, settings = manifest["counts"], manifest["settings"]
    splits = [name.removesuffix(".parquet") for name in manifest["files"]]
    yield "# Corpus"
    yield ""
    total = sum(counts[split]["documents"] for split in splits)
    yield f"{counted(total, 'document')}, prepared by cdgen. All texts differ."
    yield from _reading("Rows")
    yield from _table("column | content", _PREPARED_COLUMNS)
    yield ""
    sizes = {split: f"{counts[split]['documents']:,} | {counts[split]['words']:,}" for split in splits}
    yield from _table("split | documents | words", sizes)
    yield "\n## How it was made\n"
    for source in manifest["sources"]:
        words = joined([f"{counted(source[split]['words'], 'word')} in {split}" for split in splits])
        yield f"- source {_code(source['name'])}: {counted(len(source['inputs']), 'file')}; {words}"
    left_out = f"{counted(counts['duplicates'], 'duplicate')}, {counts['over_budget']:,} over the budgets of words"
    yield f"- documents left out: {left_out}, and {counts['empty']:,} empty"
    shares = ", ".join(f"{name} = {settings[name]}" for name in ("test", "seeds", "seed"))
    if settings.get("split_by") == "file":
        yield f"- all documents of a file are in the same split, which the hash of its texts decides: {shares}"
    else:
        yield f"- the hash of a text decides its split: {shares}"
    yield _versions(manifest.get("versions", {}))
    yield _END.format(what="the sources")


def _reading(heading: str, config: str = "") -> Iterator[str]:
    """Yield how the rows of a configuration are read, under a heading."""
    yield f"\n## {heading}\n"
    yield "```python"
    yield "from datasets import load_dataset"
    yield ""
    yield f'rows = load_dataset("FOLDER", {config}split="train")'
    yield "```"
    yield ""


def _table(header: str, rows: dict[str, str]) -> Iterator[str]:
    """Yield a table. The header and the values separate columns by "|"; the keys are the first column."""
    yield f"| {header} |"
    yield "| --- " * (header.count("|") + 1) + "|"
    for name, value in rows.items():
        yield f"| `{name}` | {value} |"


def _number_of_seeds(manifest: Manifest) -> str:
    return counted(manifest["seeds"]["count"], "seed") if "count" in manifest["seeds"] else "seeds"


def _models(models: dict[str, Any]) -> Iterator[str]:
    for role, model in models.items():
        about = "none" if model is None else f"{_code(model['name'])}, {_code(model['fingerprint'])}"
        yield f"- {role.upper()}: {about}"


def _seeds(seeds: dict[str, Any]) -> Iterator[str]:
    parts = [", ".join(map(_code, seeds["paths"]))] if seeds.get("paths") else []
    parts += [f"in chunks of at least {seeds['chunk_words']} words"] if seeds.get("chunk_words") else []
    parts += [f"cut to {seeds['prefix_tokens']} tokens"] if seeds.get("prefix_tokens") else []
    yield f"- seeds: {', '.join([*parts, _code(seeds['fingerprint'])])}"


def _sampling(settings: dict[str, Any]) -> Iterator[str]:
    """Yield the sampling parameters: the usual ones, and those that differ from their defaults."""
    stated = []
    for field in fields(SamplingParams):
        value = settings.get(field.name, field.default)
        value = tuple(value) if isinstance(value, list) else value
        if field.name in _ALWAYS or value != field.default:
            stated.append(_code(f"{field.name} = {json.dumps(value, ensure_ascii=False)}"))
    yield f"- sampling: {', '.join(stated)}"


def _versions(versions: dict[str, Any]) -> str:
    return f"- versions: {', '.join(f'{name} {value}' for name, value in versions.items())}"


def _code(text: str) -> str:
    """Return a text as a code span of Markdown, in one line; the fence is longer than any run of backticks in it."""
    line = escaped(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"
