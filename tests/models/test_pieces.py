"""How tokens are shown, and what each of them adds to a text, with every kind of tokenizer."""

import functools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from cdgen.models import pieces as module
from cdgen.models.pieces import pieces, special_ids, texts
from cdgen.models.tokenizers import decode
from tests.engine.test_text import PIECES, TOKENIZERS, ids_of


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return TOKENIZERS[kind]()


def as_bytes(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> bytes:
    shown = pieces(tokenizer, ids)
    return b"".join(one if isinstance(one, bytes) else one.encode() for one in (shown[token] for token in ids))


def by_prefixes(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text, by the definition: prefixes of all lengths are decoded."""
    whole, end, found = decode(tokenizer, ids, False), 0, []
    for count in range(1, len(ids) + 1):
        prefix = decode(tokenizer, ids[:count], False)
        common = next((at for at in range(len(prefix)) if prefix[at] != whole[at : at + 1]), len(prefix))
        start, end = end, max(end, common if count < len(ids) else len(whole))
        found.append(whole[start:end])
    return found


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
KNOWN = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)  # the text with which tokenizers were trained
FEW = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("kind", TOKENIZERS)
@FEW
@given(text=UNICODE | KNOWN)
def test_added_texts_are_the_text(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = ids_of(tokenizer, text)
    found = texts(tokenizer, ids)
    assert "".join(found) == decode(tokenizer, ids, False)
    assert found == by_prefixes(tokenizer, ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
@FEW
@given(data=st.data())
def test_added_texts_of_any_tokens(kind: str, data: st.DataObject) -> None:
    """Most of these texts are full of broken characters. Some hold special tokens."""
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=120))
    found = texts(tokenizer, ids)
    assert "".join(found) == decode(tokenizer, ids, False)
    assert found == by_prefixes(tokenizer, ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_added_texts_of_long_texts_with_broken_characters(kind: str) -> None:
    """Bytes that are characters by themselves, but not after the bytes before them, at the edges of many windows."""
    tokenizer, rng = tokenizer_of(kind), random.Random(0)
    parts = [ids_of(tokenizer, piece) for piece in PIECES]
    for _ in range(5):
        ids = [token for _ in range(150) for token in rng.choice(parts)[rng.randrange(2) :]]
        assert texts(tokenizer, ids) == by_prefixes(tokenizer, ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_added_texts_of_long_runs_of_bytes(kind: str) -> None:
    """With byte fallback, one wrong byte turns the whole run into replacement characters."""
    tokenizer = tokenizer_of(kind)
    for character in ("é", "日", "😀"):
        ids = ids_of(tokenizer, f"one {character * 40} two three one two")
        for left_out in range(12):
            broken = [*ids[:left_out], *ids[left_out + 1 :]]
            assert texts(tokenizer, broken) == by_prefixes(tokenizer, broken)


@FEW
@given(text=UNICODE | KNOWN)
def test_pieces_of_a_byte_level_tokenizer_are_its_bytes(text: str) -> None:
    tokenizer = tokenizer_of("bytes")
    assert as_bytes(tokenizer, ids_of(tokenizer, text)) == text.encode()


@FEW
@given(text=UNICODE | KNOWN)
def test_pieces_of_a_tokenizer_with_byte_fallback_are_its_bytes(text: str) -> None:
    """Words keep the space before them; the tokenizer adds one at the start, and writes any mark as a space."""
    tokenizer = tokenizer_of("fallback")
    expected = f" {text}".replace("▁", " ") if text else ""
    assert as_bytes(tokenizer, ids_of(tokenizer, text)) == expected.encode()


@FEW
@given(text=st.lists(st.sampled_from([" one", " two", ";", "three", "é", "日本", "😀"]), min_size=1).map("".join))
def test_pieces_of_a_metaspace_tokenizer_keep_their_spaces(text: str) -> None:
    tokenizer = tokenizer_of("unigrams")
    ids = ids_of(tokenizer, text)
    shown = pieces(tokenizer, ids)
    assert "".join(str(shown[token]) for token in ids) == text if text.startswith(" ") else f" {text}"


def test_pieces_are_bytes_only_if_they_are_no_whole_characters() -> None:
    for kind in ("bytes", "fallback"):
        tokenizer = tokenizer_of(kind)
        found = pieces(tokenizer, range(len(tokenizer)))
        parts = [one for one in found.values() if isinstance(one, bytes)]
        assert len(parts) >= 128 and all(one for one in found.values())
        for one in parts:
            with pytest.raises(UnicodeDecodeError):
                one.decode()
    newline = tokenizer_of("fallback").convert_tokens_to_ids("<0x0A>")
    assert pieces(tokenizer_of("fallback"), [newline]) == {newline: "\n"}


def test_word_pieces() -> None:
    tokenizer = tokenizer_of("words")
    ids = ids_of(tokenizer, "three one")
    shown = pieces(tokenizer, ids)
    assert "".join(str(shown[token]) for token in ids) == " three one"
    assert texts(tokenizer, ids) == by_prefixes(tokenizer, ids)


def test_special_and_added_tokens_are_shown_by_name() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("né", special=False)])
    special, word = tokenizer.convert_tokens_to_ids(["<|im_start|>", "né"])
    assert pieces(tokenizer, [0, special, word]) == {0: "<s>", special: "<|im_start|>", word: "né"}
    assert special_ids(tokenizer, [0, 1, 5, special, word]) == {0, 1, special}
    assert texts(tokenizer, [0, 5, special]) == ["<s>", decode(tokenizer, [5], False), "<|im_start|>"]


def test_ids_without_a_token() -> None:
    assert pieces(tokenizer_of("bytes"), [10**6]) == {10**6: "<1000000>"}
    assert pieces(None, [7, 3]) == {3: "<3>", 7: "<7>"} and texts(None, [7, 3]) == ["<7>", "<3>"]
    assert special_ids(None, [0]) == set() and texts(tokenizer_of("bytes"), []) == []


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_number_of_tokens_that_are_decoded_is_linear(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, decoded = tokenizer_of(kind), []
    ids = ids_of(tokenizer, "".join(PIECES) * 200)[:2000]

    def counted(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], skip_special_tokens: bool) -> str:
        decoded.append(len(ids))
        return decode(tokenizer, ids, skip_special_tokens)

    monkeypatch.setattr(module, "decode", counted)
    texts(tokenizer, ids)
    assert sum(decoded) < 100 * len(ids)
