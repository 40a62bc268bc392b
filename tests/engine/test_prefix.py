"""The first token ids of a long text equal those of the whole text, which is not encoded for them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.prefix import first_ids
from cdgen.engine.text import encode_prompt
from cdgen.errors import InputError

SAMPLE = "ab aab bba abab\nb  a aaaa bb ab\u00e9 " * 100


def _trained(model: str) -> Tokenizer:
    """Return a trained tokenizer; "bpe" has words of any length, and "wordpiece" turns a long word into one token."""
    kinds = {
        "bpe": (models.BPE(), trainers.BpeTrainer, None, {}),
        "byte-level": (models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=False), {}),
        "unigram": (models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(), {"unk_token": "<unk>"}),
        "wordpiece": (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer, pre_tokenizers.Whitespace(), {}),
    }
    kind, trainer, words, options = kinds[model]
    tokenizer = Tokenizer(kind)
    if words is not None:
        tokenizer.pre_tokenizer = words
    lines = [SAMPLE[at : at + 90] for at in range(0, len(SAMPLE), 90)]
    tokenizer.train_from_iterator(
        lines, trainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False, **options)
    )
    return tokenizer


TOKENIZERS = {name: _trained(name) for name in ("bpe", "byte-level", "unigram", "wordpiece")}


@given(
    name=st.sampled_from(list(TOKENIZERS)),
    unit=st.text(st.sampled_from("ab \n\u00e9"), min_size=1, max_size=40),
    repeats=st.integers(200, 900),
    count=st.sampled_from([1, 2, 20, 90]),
)
@settings(max_examples=80, deadline=None)
def test_the_ids_are_those_of_the_whole_text(name: str, unit: str, repeats: int, count: int) -> None:
    def encode(text: str) -> list[int]:
        return list(TOKENIZERS[name].encode(text).ids)

    text = unit * repeats
    assert first_ids(encode, text, count) == encode(text)[:count]


@pytest.mark.parametrize("text", ["the quick brown fox " * 50_000, "a" * 1_000_000, " " * 3000 + "ab " * 300_000])
def test_little_of_a_long_text_is_encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    read = []

    def encode(part: str) -> list[int]:
        read.append(len(part))
        return list(tokenizer(part)["input_ids"])

    assert first_ids(encode, text, 20) == tokenizer(text[:20_000])["input_ids"][:20]
    assert sum(read) < 20_000


def test_a_text_of_fewer_tokens_is_encoded_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    """For example one word that a tokenizer does not know, however long it is."""

    def encode(part: str) -> list[int]:
        return [0, len(part)]

    assert first_ids(encode, "a" * 100_000, 20) == [0, 100_000]
    assert first_ids(lambda part: [len(part) // 100_000], "a" * 100_000, 1) == [1], (
        "too few tokens follow to trust a cut"
    )
    assert first_ids(lambda part: list(tokenizer(part)["input_ids"]), "", 20) == [0]


def test_generate_refuses_a_huge_prompt_before_all_of_it_is_encoded(
    good: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = ContrastiveLM(good, tokenizer=tokenizer)
    encoded = []

    def spy(tokenizer: PreTrainedTokenizerFast, text: str, name: str, parse_special: bool) -> list[int]:
        encoded.append(len(text))
        return encode_prompt(tokenizer, text, name, parse_special)

    monkeypatch.setattr("cdgen.engine.prompts.encode_prompt", spy)
    params = SamplingParams(contrast_strength=0, max_tokens=6)
    with pytest.raises(InputError, match="prompt 1: has more tokens than the 250 that the models' positions leave"):
        lm.generate(["short", "the fox " * 200_000], params)
    assert sum(encoded) < 50_000


@pytest.mark.parametrize("text", [" " * 2_000_000 + "x", "x" + "\n" * 2_000_000, "x" * 2_000_000])
def test_a_long_run_of_one_character_is_not_encoded_as_a_whole(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    sizes = []

    def encode(part: str) -> list[int]:
        sizes.append(len(part))
        return list(tokenizer(part)["input_ids"])

    assert first_ids(encode, text, 20) == encode(text[:100_000])[:20]
    assert sum(sizes[:-1]) < 50_000
