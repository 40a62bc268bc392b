"""Everything that decides the texts of a generated corpus, as JSON for its manifest."""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cdgen.corpus import manifest as manifests
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.requests import NOISE_KEY
from cdgen.engine.sampling_params import SamplingParams
from cdgen.models.dtypes import dtype_name
from cdgen.storage.manifest import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe(lm: ContrastiveLM, params: SamplingParams, own: dict[str, Any], seeds: dict[str, Any]) -> Manifest:
    """Return the manifest of a corpus without shards.

    Files such as generation_config.json are not hashed; the values that take effect are recorded instead.

    Args:
        lm: the models.
        params: how continuations are sampled.
        own: settings of the corpus itself, such as the shard size.
        seeds: fingerprint and number of the seeds, and how they were read.
    """
    good, bad = lm.pair.good, lm.pair.bad if params.contrast_strength else None
    cache_dtype = lm.kv_cache["kv_cache_dtype"]
    settings = asdict(params) | own
    settings |= {
        "noise_key": NOISE_KEY,
        "eos_token_ids": list(lm.pair.eos_token_ids),
        "bos_token_id": lm.bos_token_id,
        "vocab_size": lm.pair.vocab_size,
        "position_limit": lm.pair.position_limit(params),
        "tokenizer": None if lm.tokenizer is None else tokenizer_fingerprint(lm.tokenizer),
        "batching": "static" if lm.static_reason else "continuous",
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


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a sha256 over what decides how a tokenizer encodes and decodes, wherever its files are."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, content, special, sorted(map(str, tokenizer.all_special_ids))]
    return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"
