"""Questions made from held-out text: sentences of several scripts, the three kinds, and a real model's answers."""

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy import stats

from cdgen.errors import InputError
from cdgen.evaluation.forms import form
from cdgen.evaluation.forms.documents import documents
from cdgen.evaluation.forms.held_out_items import CONTEXT, LONGEST, SHORTEST, questions
from cdgen.evaluation.forms.sentences import abbreviations, bare, sentences, words
from cdgen.evaluation.metrics import estimate
from cdgen.evaluation.results import arrays
from cdgen.evaluation.scoring.conventions import Query
from cdgen.evaluation.scoring.evaluator import Evaluator, Score
from cdgen.evaluation.tasks import Task
from cdgen.models.bad import first_layers
from cdgen.models.loading import load

DATA = Path(os.environ.get("CDGEN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ('"Stop!" cried he. "Why?" He went.', ['"Stop!" cried he.', '"Why?"', "He went."]),
        ("Hann kom. „Já.“ Þá fór\nhann burt.", ["Hann kom.", "„Já.“", "Þá fór hann burt."]),
        ("It cost 3.50 e.g. here… and went on.", ["It cost 3.50 e.g. here… and went on."]),
        ("我来了。你在哪里？“好！”他说。", ["我来了。", "你在哪里？", "“好！”", "他说。"]),
        ("वह आया। वह गया।", ["वह आया।", "वह गया।"]),
        ("هل جاء؟ نعم.", ["هل جاء؟", "نعم."]),
        ("A heading\n\nA sentence. \n \nAnother one", ["A heading", "A sentence.", "Another one"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in sentences(text)] == expected


def test_separators_restore_the_text() -> None:
    text = "One. Two!\n\nThree? “四。”五。Six."
    assert "".join(sentence.separator + sentence.text for sentence in sentences(text)) == text


def test_abbreviations_are_found_in_the_text() -> None:
    text = "".join(f"Mr. Bell saw Dr. Ness in room {room}. " for room in range(5)) + "The end. It was the end of it."
    assert abbreviations([text]) == {"Mr", "Dr"}
    assert len(sentences(text, abbreviations([text]))) == 7
    assert len(sentences(text)) == 17


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert words("The cat sat.") == (["The", "cat", "sat."], " ")
    found, space = words("ที่" * 12)
    assert space == "" and len(found) == 12  # the marks above and below stay with their consonant


@pytest.mark.parametrize(("word", "expected"), [("“Tom,”", "Tom"), ("की", "की"), ("don't", "don't"), ("--", "")])
def test_bare_words(word: str, expected: str) -> None:
    assert bare(word) == expected


NAMES = ("Anna", "Boris", "Clara", "David", "Edith", "Frank")
PLACES = ("garden", "kitchen", "market", "forest", "library", "harbour", "village", "castle")
ACTS = ("looked at the old", "walked towards the large", "was afraid of the dark", "slept behind the quiet")


def story(number: int, sentences_each: int = 30) -> str:
    """Return a text in which one name at a time is repeated."""
    source = random.Random(number)
    written = []
    for name in NAMES:
        for _ in range(sentences_each):
            act, place = source.choice(ACTS), source.choice(PLACES)
            written.append(f"On day {len(written)} there was {name}, and later {name} {act} {place}.")
    return " ".join(written)


TEXTS = [story(number) for number in range(3)]


def test_questions_are_the_same_for_the_same_seed_and_extend_a_smaller_count() -> None:
    found = questions(TEXTS, 20, 0)
    assert {kind: len(each) for kind, each in found.items()} == {"next_sentence": 20, "word_order": 20, "name": 20}
    assert questions(TEXTS, 20, 0) == found
    assert {kind: each[:7] for kind, each in found.items()} == questions(TEXTS, 7, 0)
    assert questions(TEXTS, 20, 1) != found


def test_every_question_holds_the_text_itself_first() -> None:
    for kind, made in questions(TEXTS, 50, 0).items():
        assert len({question.place for question in made}) == len(made), kind
        for question in made:
            assert question.context + question.continuations[0] in TEXTS[question.place[0]]
            assert (
                len({*question.continuations}) == len(question.continuations) == (4 if kind == "next_sentence" else 2)
            )


def test_next_sentences_are_of_similar_length_and_from_elsewhere_in_the_document() -> None:
    for (document, at), context, (true, *others) in questions(TEXTS, 50, 0)["next_sentence"]:
        every = [sentence.text for sentence in sentences(TEXTS[document])]
        assert true == " " + every[at] and SHORTEST <= len(every[at]) <= LONGEST
        assert len(context) >= min(CONTEXT, len(" ".join(every[:at])))
        for other in others:
            assert abs(len(other) - len(true)) <= 0.1 * len(true) + 1
            assert other[1:] in every and other not in context


def test_short_documents_take_sentences_from_others() -> None:
    texts = [
        f"This is the first line of the text {number}. And {number} is the second line of it." for number in range(9)
    ]
    for (document, at), _, (_, *others) in questions(texts, 9, 0)["next_sentence"]:
        assert at == 1 and all(other[1:] not in texts[document] for other in others)


def test_three_consecutive_words_are_shuffled() -> None:
    starts = Counter[int]()
    for _, context, (true, other) in questions(TEXTS, 50, 0)["word_order"]:
        changed = [at for at, pair in enumerate(zip(true.split(), other.split(), strict=True)) if pair[0] != pair[1]]
        assert context == "" and sorted(true.split()) == sorted(other.split())
        assert changed[0] > 0 and changed[-1] < len(true.split()) - 1 and changed[-1] - changed[0] <= 2
        starts[changed[0]] += 1
    assert len(starts) > 3


def test_names_are_in_the_context_and_the_others_are_not() -> None:
    for _, context, (true, other) in questions([story(number, 4) for number in range(9)], 50, 0)["name"]:
        names = [bare(each.split()[0]) for each in (true, other)]
        assert {*names} < {*NAMES} and names[0] in context and names[1] not in context
        assert true.replace(names[0], names[1]) == other  # in the rest of the sentence as well


def test_scripts_without_capital_letters_and_without_spaces() -> None:
    hindi = "".join(f"आज वहाँ {i} बजे मोहन{i // 10} ने बड़ा घर और पुराना पेड़ देखा। " for i in range(60))
    found = questions([hindi], 9, 0)
    assert len(found["word_order"]) == 9 and {bare(each.continuations[0]) for each in found["name"]} != {}
    chinese = "".join(f"第{i}天我们一起去看望他的朋友们和老师，然后我们都回家吃饭休息睡觉了。" for i in range(60))
    assert {kind: len(made) for kind, made in questions([chinese], 9, 0).items()} == {
        "next_sentence": 9,
        "word_order": 9,
        "name": 0,
    }


class Rating:
    """An evaluator with given log-probabilities of some continuations; the others have -1."""

    def __init__(self, logprobs: Mapping[str, float]) -> None:
        self.logprobs = logprobs

    def continuations(self, queries: Sequence[Query]) -> list[Score]:
        """Return the given log-probabilities."""
        return [Score(self.logprobs.get(query.continuation, -1.0), 7, False) for query in queries]


def corpus(path: Path, texts: Sequence[str] = TEXTS) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_the_macro_average_over_kinds_by_hand(tmp_path: Path) -> None:
    kind, task = form("held_out"), Task("t", "held_out", corpus(tmp_path / "a.jsonl"), options={"items": 4})
    items = kind.items(task)
    assert [item.group for item in items] == ["next_sentence"] * 4 + ["word_order"] * 4 + ["name"] * 4
    # The model confuses two questions: the text itself is improbable in one, and equal to the other in the next.
    wrong = [items[5].content["continuations"][0], items[8].content["continuations"][0]]
    table = kind.score(items, cast(Evaluator, Rating(dict.fromkeys(wrong, -2.0))))
    first = [-1.0 for _ in items]
    first[5] = first[8] = -2.0
    assert [each[0] for each in table["logprobs"]] == first and table["tokens"][0] == [7] * 4
    assert table["correct"] == [0] * 12  # others are as probable as the text itself

    likely = {item.content["continuations"][0]: -0.5 for item in items} | dict.fromkeys(wrong, -2.0)
    table = kind.score(items, cast(Evaluator, Rating(likely)))
    assert table["correct"] == [1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1]
    assert estimate(kind.metrics[0], arrays(table, items, "test")) == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)


def test_a_limit_is_one_for_each_kind(tmp_path: Path) -> None:
    items = form("held_out").items(Task("t", "held_out", corpus(tmp_path / "a.jsonl"), limit=3))
    assert len(items) == 9 and len({item.id for item in items}) == 9


def test_texts_without_questions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = corpus(tmp_path / "a.jsonl", ["Too short.", "a heading without an end " * 3])
    with pytest.raises(InputError, match=r"a.jsonl: gives no questions: 2 documents without finished sentences of 30"):
        form("held_out").items(Task("t", "held_out", path))
    path = corpus(tmp_path / "b.jsonl", ["Nobody in this long sentence has a name at all, which is the point."])
    with caplog.at_level(logging.WARNING):
        items = form("held_out").items(Task("t", "held_out", path))
    assert [item.group for item in items] == ["word_order"]
    assert "b.jsonl gives no questions of the kind next_sentence and name" in caplog.text


def test_documents_of_a_folder_of_text_files_and_of_a_prepared_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("b.txt", "Second."), ("a.txt", "First."), ("c.txt", " \n"), ("notes.md", "No.")):
        (folder / name).write_text(text)
    assert list(documents(str(folder))) == [("a.txt", "First."), ("b.txt", "Second.")]
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"A {split} text."]}), prepared / f"{split}.parquet")
    assert list(documents(str(prepared))) == [("1", "A test text.")]


@pytest.mark.parametrize("language", ["books", "icelandic"])
def test_questions_from_real_texts(language: str) -> None:
    if not (DATA / language).is_dir():
        pytest.skip(f"needs {DATA / language}")
    texts = [text for _, text in islice(documents(str(DATA / language)), 3)]
    found = questions(texts, 30, 0)
    assert {kind: len(made) for kind, made in found.items()} == {"next_sentence": 30, "word_order": 30, "name": 30}


@pytest.mark.slow
def test_a_real_model_is_better_than_its_first_layers(smollm2: Path) -> None:
    book = DATA / "books" / "jack-london-white-fang.txt"
    if not book.exists():
        pytest.skip(f"needs {book}")
    model, tokenizer = load(str(smollm2), device="cpu")
    assert tokenizer is not None
    kind = form("held_out")
    items = kind.items(Task("t", "held_out", str(book), limit=15))
    correct = [
        np.array(kind.score(items, Evaluator(each, tokenizer))["correct"]) for each in (model, first_layers(model, 15))
    ]
    won, lost = (int((correct[one] > correct[1 - one]).sum()) for one in (0, 1))
    assert stats.binomtest(won, won + lost, alternative="greater").pvalue < 0.01
