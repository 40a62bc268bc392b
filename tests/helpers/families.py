"""Tiny random models of several architectures."""

import torch
import transformers

from tests.helpers.tiny_models import VOCABULARY

# `initializer_range` makes the logits of random weights as peaked as a language model's.
SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.25, "bos_token_id": 0, "eos_token_id": 1}
LLAMA_LIKE = SMALL | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE),
    # A window shorter than the sequences of the tests; gemma2 alternates sliding and full layers.
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=6, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**LLAMA_LIKE, sliding_window=6, head_dim=16),
    "gpt2": lambda: transformers.GPT2Config(**SMALL, n_embd=64, n_layer=3, n_head=4, n_positions=256),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **{k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}
    ),
    # A window of its own, and attention that takes the length of the cache for the number of tokens.
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **SMALL, hidden_size=64, num_layers=3, num_heads=4, attention_types=[[["local"], 3]], window_size=6
    ),
    "bloom": lambda: transformers.BloomConfig(**SMALL, hidden_size=64, n_layer=3, n_head=4),  # ALiBi, no position ids
    "opt": lambda: transformers.OPTConfig(
        **{k: v for k, v in SMALL.items() if k != "initializer_range"},
        init_std=0.25,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=64,
    ),
}


def family(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """Return a random model of a family, in evaluation mode."""
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(FAMILIES[name]()).eval()


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids, int64 [batch, length]."""
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
