"""Which token ids the conventions make of a text, and which of them are scored."""

from typing import Any, get_args

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cdgen.errors import InputError
from cdgen.evaluation.scoring.conventions import Convention, ConventionName, Query, Tokens, windows
from tests.helpers.tiny_models import make_tokenizer

WORDS = {"<s>": 0, "</s>": 1, "the": 2, "cat": 3, "sat": 4, "down": 5, ".": 6, "s": 9, ">": 10}
TEXT = ("the cat", " sat down.")


def words(template: str = "$A", **marks: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the words of a text and its punctuation."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def query(convention: ConventionName, tokenizer: PreTrainedTokenizerFast, *texts: str) -> Tokens:
    return Convention(convention, tokenizer).queries([Query(*texts)])[0]


BOS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("convention", "tokenizer", "texts", "expected"),
    [
        ("babylm", words(**BOS), TEXT, Tokens([2, 3, 4, 5, 6], 2)),
        ("babylm", words("<s> $A", **BOS), TEXT, Tokens([0, 2, 3, 4, 5, 6], 3)),
        # Without a start-of-text token the first token of a text is not scored; with one it is.
        ("babylm", words(**BOS), ("", "the cat sat"), Tokens([2, 3, 4], 1)),
        ("babylm", words("<s> $A", **BOS), ("", "the cat sat"), Tokens([0, 2, 3, 4], 1)),
        # A token on both sides of the border is scored as a whole.
        ("babylm", words(**BOS), ("the ca", "t sat"), Tokens([2, 3, 4], 1)),
        # An added end of text stands for no character, and is not scored.
        ("babylm", words("<s> $A </s>", **BOS), TEXT, Tokens([0, 2, 3, 4, 5, 6], 3)),
        ("lm-eval", words(**BOS), TEXT, Tokens([2, 3, 4, 5, 6], 2)),
        ("lm-eval", words("<s> $A", **BOS), TEXT, Tokens([0, 2, 3, 4, 5, 6], 3)),
        ("lm-eval", words(**BOS), ("", "the cat sat"), Tokens([0, 2, 3, 4], 1)),
        ("lm-eval", words("<s> $A", **BOS), ("", "the cat sat"), Tokens([0, 2, 3, 4], 1)),
        ("lm-eval", words(eos_token="</s>"), ("", "the cat"), Tokens([1, 2, 3], 1)),
        # The ids of the context are counted, wherever they end: here "cat" is one token and "ca" another.
        ("lm-eval", words(**BOS), ("the ca", "t sat"), Tokens([2, 3, 4], 2)),
        ("lm-eval", words(**BOS), ("  ", "the cat"), Tokens([0, 2, 3], 1)),
    ],
)
def test_queries(
    convention: ConventionName, tokenizer: PreTrainedTokenizerFast, texts: tuple[str, str], expected: Tokens
) -> None:
    assert query(convention, tokenizer, *texts) == expected


def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation() -> None:
    tokenizer = make_tokenizer(bos=False)
    after, before = (
        query("lm-eval", tokenizer, "The quick ", "brown"),
        query("lm-eval", tokenizer, "The quick", " brown"),
    )
    assert after == before
    assert tokenizer.decode(after.ids[after.first :]) == " brown"
    # "The quick " alone ends in a token for the space, which is not one of the whole text.
    assert len(tokenizer("The quick ")["input_ids"]) > before.first


@pytest.mark.parametrize("convention", get_args(ConventionName))
def test_the_order_of_queries_is_kept(convention: ConventionName) -> None:
    queries = [Query("the", " cat sat"), Query("", "cat sat"), Query("the cat", " sat"), Query("", "the sat")]
    together = Convention(convention, words(**BOS)).queries(queries)
    assert together == [query(convention, words(**BOS), *each) for each in queries]


@pytest.mark.parametrize("convention", get_args(ConventionName))
def test_a_special_token_in_a_text_is_text(convention: ConventionName) -> None:
    assert query(convention, words(**BOS), "the", " cat </s>").ids[-3:] == [6, 9, 10]
    found = Convention(convention, words(**BOS)).texts(["the </s>"])[0]
    assert found.tokens.ids[-3:] == [6, 9, 10]


def test_texts_state_the_characters_of_scored_tokens() -> None:
    expected = [(4, 7), (8, 11)]
    assert Convention("babylm", words(**BOS)).texts(["the cat sat"]) == [(Tokens([2, 3, 4], 1), expected)]
    for tokenizer in (words(eos_token="</s>"), words("<s> $A </s>", **BOS)):
        (found,) = Convention("lm-eval", tokenizer).texts(["the cat sat"])
        assert len(found.offsets) == len(found.tokens.ids) - found.tokens.first
        assert [pair for pair in found.offsets if pair != (0, 0)] == [(0, 3), *expected]
    (found,) = Convention("babylm", words("<s> $A </s>", **BOS)).texts(["the cat sat"])
    assert found == (Tokens([0, 2, 3, 4], 1), [(0, 3), *expected])


def test_a_text_of_one_token_has_nothing_to_score_in_babylm() -> None:
    convention = Convention("babylm", words(**BOS))
    assert convention.texts(["the"])[0].offsets == []
    with pytest.raises(InputError, match=r"'the' of the text 'the' has no token to score in the convention 'babylm'"):
        convention.queries([Query("", "the")])


@pytest.mark.parametrize("convention", get_args(ConventionName))
def test_an_empty_continuation(convention: ConventionName) -> None:
    with pytest.raises(InputError, match="has no token to score"):
        query(convention, words(**BOS), "the cat", "")


@pytest.mark.parametrize("convention", get_args(ConventionName))
def test_half_of_a_surrogate_pair(convention: ConventionName) -> None:
    for call in (lambda one: one.queries([Query("", "a\ud800")]), lambda one: one.texts(["a\ud800"])):
        with pytest.raises(InputError, match="half of a surrogate pair"):
            call(Convention(convention, words(**BOS)))


def test_a_tokenizer_without_a_token_for_an_empty_context() -> None:
    with pytest.raises(InputError, match="neither a start-of-text nor an end-of-text token"):
        Convention("lm-eval", words())
    assert query("babylm", words(), *TEXT).first == 2


def test_an_unknown_convention() -> None:
    with pytest.raises(InputError, match=r"convention = 'mine': use 'babylm' or 'lm-eval'"):
        Convention("mine", words(**BOS))  # type: ignore[arg-type]


def test_a_tokenizer_that_does_not_state_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: Any = words(**BOS)
    monkeypatch.setattr(type(slow), "is_fast", False)
    with pytest.raises(InputError, match="gives no character offsets"):
        query("babylm", slow, *TEXT)
    with pytest.raises(InputError, match="gives no character offsets"):
        Convention("lm-eval", slow).texts(["the cat"])
    assert query("lm-eval", slow, *TEXT).first == 2


def test_windows() -> None:
    ids = list(range(10))
    assert list(windows(Tokens(ids, 1), 9)) == [Tokens(ids, 1)]
    assert list(windows(Tokens(ids, 1), 100)) == [Tokens(ids, 1)]
    assert list(windows(Tokens(ids, 10), 4)) == []
    # Scored are 1 2 3 4, then 5 6 7 8 after 4 alone; the last window begins early enough to have five tokens.
    assert list(windows(Tokens(ids, 1), 4)) == [
        Tokens([0, 1, 2, 3, 4], 1),
        Tokens([4, 5, 6, 7, 8], 1),
        Tokens([5, 6, 7, 8, 9], 4),
    ]
