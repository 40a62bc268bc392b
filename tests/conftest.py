"""Tiny models with a tiny tokenizer, made on the spot, and the one real model where its package is installed."""

import os

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network

VOCABULARY = 300
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was a small house by the river, and in the house there lived a cat.",
    "How do you make bread? You take flour, water, salt and time.",
]


def make_tokenizer(sentences=SENTENCES, bos=True):
    """A byte-level BPE of `VOCABULARY` tokens; every text can be written with it. <s> is 0 and put in front, </s> is 1."""
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


def make_llama(seed, layers=2, width=64, vocab_size=VOCABULARY, **changes):
    """A random Llama whose logits are as peaked as a language model's, in float32, ready to evaluate."""
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


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def good():
    return make_llama(0)


@pytest.fixture(scope="session")
def bad():
    return make_llama(1, layers=1, width=32)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, good, bad, tokenizer):
    """Saved models by name: good, bad, other (another vocabulary), wide (padded output layer), bare (no tokenizer)."""
    root = tmp_path_factory.mktemp("models")
    other = make_tokenizer(["zebra quartz vex jolly " * 4])
    saved = {
        "good": (good, tokenizer),
        "bad": (bad, tokenizer),
        "other": (make_llama(2), other),
        "wide": (make_llama(3, vocab_size=VOCABULARY + 20), tokenizer),
        "bare": (bad, None),
    }
    for name, (model, tok) in saved.items():
        model.save_pretrained(root / name)
        if tok is not None:
            tok.save_pretrained(root / name)
    return {name: root / name for name in saved}


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M-Instruct, converted on first use into the user's cache."""
    from cdgen.demo import smollm2_folder
    from cdgen.errors import InputError

    try:
        return smollm2_folder()
    except InputError as error:
        pytest.skip(str(error))
