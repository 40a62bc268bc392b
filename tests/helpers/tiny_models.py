"""Tiny random models with a tiny tokenizer."""

import os
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEST_DEVICE = os.environ.get("CDGEN_TEST_DEVICE")  # "cuda" or "cpu" for the tests in tests/gpu

VOCABULARY = 300
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was a small house by the river, and in the house there lived a cat.",
    "How do you make bread? You take flour, water, salt and time.",
]


def make_tokenizer(sentences: list[str] = SENTENCES, bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with `VOCABULARY` tokens. <s> is 0 and starts each text, </s> is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences * 5, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    marks = {"bos_token": "<s>", "eos_token": "</s>"} if bos else {"eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def make_llama(
    seed: int, layers: int = 2, width: int = 64, vocab_size: int = VOCABULARY, **changes: Any
) -> LlamaForCausalLM:
    """Return a random float32 Llama in evaluation mode, with logits as peaked as a language model's."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=1,
        **changes,
    )
    return LlamaForCausalLM(config).eval()
