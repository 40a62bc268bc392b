"""Text of prompts and continuations, and stop strings, whatever the tokenizer and wherever the prompt ends."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus.seeds import Seed
from cdgen.corpus.writer import write_corpus
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.text import StopStrings, decode_after, decode_parts, prompt_text
from cdgen.models.tokenizers import decode
from cdgen.storage.folder import OutputFolder
from tests.helpers.tiny_models import SENTENCES, make_tokenizer

PIECES = ["né", "日本", " one", " two", ";", "three", "😀", "é", " ", "\ufffd", " do n't", " ,"]
TEXTS = [*SENTENCES, "".join(PIECES)]
MARKS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def byte_fallback() -> PreTrainedTokenizerFast:
    """Return a tokenizer as Llama 2's: words begin with a mark, and unknown characters are written as bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for character in sorted({*"▁", *(c for text in TEXTS for c in text if c.isascii() and c != " ")}):
        vocabulary[character] = len(vocabulary)
    merges = []
    for word in ("▁one", "▁two", "three"):
        for at in range(1, len(word)):
            if word[: at + 1] not in vocabulary:
                vocabulary[word[: at + 1]] = len(vocabulary)
                merges.append((word[:at], word[at]))
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **MARKS)


def word_pieces() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    options = {"special_tokens": [*MARKS.values()], "show_progress": False}
    backend.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(vocab_size=200, **options))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **MARKS)


def unigrams() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    options = {"special_tokens": [*MARKS.values()], "unk_token": "<unk>", "show_progress": False}
    backend.train_from_iterator(TEXTS * 3, trainers.UnigramTrainer(vocab_size=120, **options))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **MARKS)


TOKENIZERS = {
    "bytes": lambda: make_tokenizer(TEXTS),
    "fallback": byte_fallback,
    "words": word_pieces,
    "unigrams": unigrams,
}


def first_stop(watch: StopStrings, ids: list[int]) -> tuple[str | None, int]:
    """Return the text before the first stop string, and the number of tokens read."""
    for count, token in enumerate(ids, 1):
        if (text := watch.append(token)) is not None:
            return text, count
    return None, len(ids)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_stop_strings_match_after_a_prompt_that_ends_inside_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = ids_of(tokenizer, "né one, two; three")
    assert decode(tokenizer, ids[:2], True) == "n\ufffd"
    watch = StopStrings(tokenizer, ids[:2], SamplingParams(stop="two"))
    assert first_stop(watch, ids[2:])[0] == "é one, "
    emoji = ids_of(tokenizer, "x😀 one two")
    for inside in (2, 3, 4):  # after one, two and three bytes of the four
        watch = StopStrings(tokenizer, emoji[:inside], SamplingParams(stop=["two"]))
        assert first_stop(watch, emoji[inside:])[0] == "😀 one "
    broken = [*ids[:2], *ids_of(tokenizer, " one, two;")]  # the character is never completed
    watch = StopStrings(tokenizer, broken[:2], SamplingParams(stop="two"))
    assert first_stop(watch, broken[2:])[0] == "\ufffd one, "


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_and_stop_strings_agree_with_the_whole_text(name: str) -> None:
    """Prompts end anywhere, even inside a character, and may contain special tokens."""
    tokenizer, rng = TOKENIZERS[name](), random.Random(0)
    special, found = tokenizer.all_special_ids, 0
    for _ in range(200):
        first, second = ("".join(rng.choice(PIECES) for _ in range(6)) for _ in range(2))
        between = [rng.choice(special)] if rng.random() < 0.5 else []
        ids, skip = [*ids_of(tokenizer, first), *between, *ids_of(tokenizer, second)], rng.random() < 0.7
        at = rng.randrange(len(ids))
        prompt, new = ids[:at], ids[at:]
        whole, after = decode(tokenizer, ids, skip), decode_after(tokenizer, prompt, new, skip)
        assert prompt_text(tokenizer, prompt, skip) + after == whole
        assert decode_parts(tokenizer, prompt, new, skip)[1] == after
        watch = StopStrings(tokenizer, prompt, SamplingParams(stop="\0", skip_special_tokens=skip))
        for count, token in enumerate(new, 1):
            assert watch.append(token) is None
            exact = decode_after(tokenizer, prompt, new[:count], skip)
            if not exact.endswith("\ufffd"):
                assert watch.text == exact
        text = after.rstrip("\ufffd")
        if len(text) > 4:
            start = rng.randrange(len(text) - 3)
            stop = text[start : start + rng.randrange(1, 4)]
            watch = StopStrings(tokenizer, prompt, SamplingParams(stop=stop, skip_special_tokens=skip))
            stopped, count = first_stop(watch, new)
            if "\ufffd" not in stop:
                assert stopped == text[: text.find(stop)]
                assert stop not in decode_after(tokenizer, prompt, new[: count - 1], skip), "it stopped too late"
                found += 1
    assert found > 50


def test_replacement_characters_that_a_prompt_holds_stay_with_it(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = ids_of(tokenizer, "a \ufffd\ufffd")
    assert prompt_text(tokenizer, ids, True) == "a \ufffd\ufffd"
    assert decode_after(tokenizer, ids, ids_of(tokenizer, " one"), True) == " one"
    cut = [*ids, *ids_of(tokenizer, "é")[:1]]
    assert prompt_text(tokenizer, cut, True) in ("a \ufffd\ufffd", "a ")
    assert "".join(decode_parts(tokenizer, cut, [], True)) == "a \ufffd\ufffd\ufffd"


def test_outputs_of_prompts_that_end_inside_a_character(folders: dict[str, Path]) -> None:
    lm = ContrastiveLM(folders["good"], folders["bad"])
    for ids in (ids_of(lm.tokenizer, "né")[:-1], ids_of(lm.tokenizer, "né"), ids_of(lm.tokenizer, "x😀")[:3]):
        (request,) = lm.generate(ids, SamplingParams(n=8, max_tokens=12, ignore_eos=True))
        for output in request.outputs:
            assert request.prompt + output.text == decode(lm.tokenizer, [*ids, *output.token_ids], True)


def test_the_text_column_is_the_text_of_the_tokens(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed ends inside a character. Continuations complete it or not, and may end inside another one."""
    import pyarrow.parquet as pq

    lm = ContrastiveLM(folders["good"], folders["bad"])
    ids = ids_of(lm.tokenizer, "né one")
    news = [ids[2:], ids[3:], [*ids[2:], ids[1]]]
    texts = ["é one", "\ufffd one", "é one\ufffd"]

    def drawn(
        prompts: object, rows: Sequence[tuple[int, int]], *rest: object, on_finished: Any, **more: object
    ) -> None:
        for place, (_, at) in enumerate(rows):
            text = decode_after(lm.tokenizer, ids[:2], news[at], True)
            on_finished(place, CompletionOutput(at, text, news[at], "length", None))

    monkeypatch.setattr(lm, "continue_sequences", drawn)
    with OutputFolder(tmp_path / "out") as folder:
        write_corpus(lm, [Seed("s", ids[:2])], folder, SamplingParams(n=3, max_tokens=6))
    rows = pq.read_table(next((tmp_path / "out").rglob("*.parquet"))).to_pylist()
    assert [row["text"] for row in rows] == ["n" + text for text in texts]
    assert all(row["text"] == decode(lm.tokenizer, row["token_ids"], True) for row in rows)
