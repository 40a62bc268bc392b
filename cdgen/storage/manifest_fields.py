"""The fields of each kind of manifest, as declarations for :mod:`cdgen.storage.checked_json`."""

import re
from typing import Any

# What follows "+" is how a BAD is made from GOOD.
_FINGERPRINT = re.compile(r"[^+]*(\+(dropout:\d+(\.\d+)?(e-\d+)?|layers:\d+))?")
_MODEL = {"name": str, "fingerprint": _FINGERPRINT}
# cdgen may delete files that a manifest lists, so a manifest may list only names that cdgen itself gives to files.
SHARD_NAME = re.compile(r"data/train-\d{5,}\.(parquet|jsonl\.gz)")
DOCUMENTS_NAME = re.compile(r"_documents/\d{5,}\.(parquet|jsonl\.gz)")
_SPLIT_NAME = re.compile(r"(train|test|seeds)\.parquet")
_TOKENIZER_NAME = re.compile(r"tokenizer(_config)?\.json")
_SCORES_NAME = re.compile(r"scores/\w[\w.-]*/\w[\w.-]*\.parquet")
_COMPARISON_NAME = re.compile(r"comparison\.(md|tex)")
_CHECKPOINT_FILE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SHARD = {
    "number": int,
    "name": SHARD_NAME,
    "rows": int,
    "tokens": int,
    "new_tokens": int,
    "errors": int,
    "arrow_bytes?": int,
    "sha256": str,
    "environment": int,
    "documents?": {"name": DOCUMENTS_NAME, "rows": int, "arrow_bytes?": int, "sha256": str},
}
_EFFECT = {"value": float, "interval": [float], "p": float, "p_corrected": float, "detectable": float}
_TOTALS = {"documents": int, "words": int, "bytes": int}
GENERATED: dict[str, Any] = {
    "settings": {
        "ignore_eos": bool,
        "split_documents": bool,
        "format": re.compile(r"parquet|jsonl\.gz"),
        "eos_token_ids?": [int],
    },
    "models": {"good": _MODEL, "bad": (_MODEL, None)},
    "seeds": {
        "fingerprint": str,
        "count?": int,
        "named?": int,
        "paths?": [str],
        "field?": str,
        "prefix_tokens?": (int, None),
        "chunk_words?": (int, None),
        "parse_special?": bool,
    },
    "environments": [dict],
    "complete": bool,
    "counts": {"shards": int, "documents": int, "tokens": int, "new_tokens": int, "errors": int},
    "shards": [_SHARD],
    "replaces?": [re.compile(f"{SHARD_NAME.pattern}|{DOCUMENTS_NAME.pattern}")],
}
PREPARED: dict[str, Any] = {
    "settings": {"test": float, "seeds": float, "seed": float, "split_by?": str},
    "sources": [
        {
            "name": str,
            "inputs": [{"label": str, "sha256": (str, None)}],  # None for data from the hub
            "train": _TOTALS,
            "test": _TOTALS,
            "seeds": _TOTALS,
        }
    ],
    "fingerprint": str,
    "versions?": {re.compile(r".+"): str},
    "counts": {
        "train": _TOTALS,
        "test": _TOTALS,
        "seeds": _TOTALS,
        "duplicates": int,
        "over_budget": int,
        "empty": int,
    },
    "files": {_SPLIT_NAME: {"sha256": str, "arrow_bytes?": int}},
    "replaces?": [_SPLIT_NAME],
}
TOKENIZER: dict[str, Any] = {
    "corpus_sha256": str,
    "fingerprint": str,
    "entries": int,
    "files": {_TOKENIZER_NAME: str},
    "replaces?": [_TOKENIZER_NAME],
}
RUN: dict[str, Any] = {
    "config": dict,
    "inputs": dict,
    "environments": [dict],
    "checkpoints": [{"step": int, "loss": float, "perplexity": (float, None), "files": {_CHECKPOINT_FILE: str}}],
}
RESULTS: dict[str, Any] = {
    "environments": [dict],
    "results": [
        {
            "model": {"label": str, "seed": (int, None), "step": (int, None)} | _MODEL,
            "task": {"name": str, "form": str, "convention": str, "items": int, "fingerprint": str, "metrics": [dict]},
            "values": dict,
            "name": _SCORES_NAME,
            "sha256": str,
            "environment": int,
        }
    ],
}
COMPARISON: dict[str, Any] = {
    "baseline": str,
    "checkpoint": str,
    "resamples": int,
    "confidence": float,
    "seed": int,
    "methods": [{"method": str, "runs": int, "better": int, "mean_relative_change": (_EFFECT, None)}],
    "tasks": [
        {
            "name": str,
            "form": str,
            "convention": str,
            "items": int,
            "metric": str,
            "higher_is_better": bool,
            "in_mean": bool,
        }
    ],
    "results": [
        {
            "method": str,
            "task": str,
            "runs": [{"model": str, "seed": (int, None), "step": (int, None), "value": float}],
            "estimate": float,
            "interval": [float],
            "difference": (_EFFECT, None),
            "relative_change": (_EFFECT, None),
        }
    ],
    "warnings": [str],
    "files": {_COMPARISON_NAME: str},
}
