"""Stories about boxes: the simulation against stories done by hand, and what the options must not give away."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pytest

from cdgen.evaluation.forms import boxes
from cdgen.evaluation.forms.boxes import Contents, Operation, Story, named, story


def contents(*stated: str) -> Contents:
    return tuple(frozenset(things.split()) for things in stated)


PUT = Operation("put", "key", None, 1)
REMOVE = Operation("remove", "hat", 0, None)
MOVE = Operation("move", "coat", 0, 2)
MOVE_ALL = Operation("move all", "", 2, 1)


def simulate(start: Contents, operations: Iterable[Operation]) -> list[Contents]:
    """Return what is in the boxes at first and after each operation."""
    return list(accumulate(operations, lambda state, operation: operation.apply(state), initial=start))


def test_a_story_done_by_hand() -> None:
    states = simulate(contents("coat hat", "", "map"), [PUT, REMOVE, MOVE, MOVE_ALL])
    assert states == [
        contents("coat hat", "", "map"),
        contents("coat hat", "key", "map"),
        contents("coat", "key", "map"),
        contents("", "key", "map coat"),
        contents("", "key map coat", ""),
    ]


@pytest.mark.parametrize(
    "operation",
    [
        Operation("remove", "key", 0, None),  # the key is in no box
        Operation("move", "map", 0, 1),  # the map is in another box
        Operation("put", "map", None, 0),  # the map is in a box already
        Operation("move all", "", 1, 0),  # from an empty box
    ],
)
def test_impossible_operations(operation: Operation) -> None:
    with pytest.raises(ValueError, match=re.escape(operation.text())):
        operation.apply(contents("coat hat", "", "map"))


def test_english() -> None:
    one = Story(
        contents("hat coat", "", "map"), (PUT, REMOVE, MOVE, MOVE_ALL), 1, contents("map key coat", "hat key map")
    )
    assert one.prefix() == (
        "Box 0 contains the coat and the hat, Box 1 contains nothing, Box 2 contains the map. Put the key into Box 1. "
        "Remove the hat from Box 0. Move the coat from Box 0 to Box 2. Move the contents of Box 2 to Box 1. "
        "Box 1 contains"
    )
    assert one.completions() == [" the coat and the key and the map.", " the hat and the key and the map."]
    assert one.difficulty == 2
    assert named([]) == "nothing"


@dataclass
class Reader:
    """What a reader of the English text finds, with code of its own: the contents of the box in question."""

    text: str

    def answer(self) -> set[str]:
        start, *sentences = self.text.split(". ")
        found = {
            number: set(re.findall(r"the (\w+)", things))
            for number, things in re.findall(r"Box (\d+) (.*?)(?:,|$)", start)
        }
        for sentence in sentences[:-1]:
            numbers = re.findall(r"Box (\d+)", sentence)
            things = set(re.findall(r"the (\w+)", sentence))
            if "contents" in things:
                things = set(found[numbers[0]])
            if not sentence.startswith("Put"):
                assert things <= found[numbers[0]]
                found[numbers[0]] -= things
            if not sentence.startswith("Remove"):
                found[numbers[-1]] |= things
        return found[re.findall(r"Box (\d+)", sentences[-1])[0]]


STORIES = [story(1, index, boxes=7, operations=5, difficulty=index % 6) for index in range(600)]


def test_the_right_option_follows_from_the_text() -> None:
    for one in STORIES:
        assert named(Reader(one.prefix()).answer()) == named(one.options[0]) != "nothing"
        assert one.options[0] == simulate(one.start, one.operations)[-1][one.box]


def test_the_number_of_operations() -> None:
    for index, one in enumerate(STORIES):
        assert one.difficulty == index % 6 and len(one.operations) == 5
        assert (one.options[0] == one.start[one.box]) == (one.difficulty == 0)
        assert all(
            len(things) <= boxes.MOST_PER_BOX for state in simulate(one.start, one.operations) for things in state
        )


def test_stories_depend_on_their_seed_and_number_only() -> None:
    def prefix(seed: int, index: int) -> str:
        return story(seed, index, boxes=5, operations=2, difficulty=1).prefix()

    assert prefix(1, 2) == prefix(1, 2)
    assert len({prefix(1, 2), prefix(1, 3), prefix(2, 2)}) == 3


def test_a_story_is_the_same_in_every_version() -> None:
    one = story(0, 3, boxes=4, operations=3, difficulty=2)
    assert one.prefix() == (
        "Box 0 contains the kite, Box 1 contains the chain and the cup and the ticket, Box 2 contains the bag and "
        "the pan, Box 3 contains the bottle and the cross and the paper. Put the card into Box 2. Move the cross from "
        "Box 3 to Box 0. Remove the paper from Box 3. Box 3 contains"
    )
    assert one.completions() == [" the bottle.", " the paper.", " the cross.", " the bag."]


def test_options_are_distinct_and_equally_many_objects() -> None:
    for one in STORIES:
        assert len(set(one.options)) == len(one.options) == 1 + boxes.WRONG_OPTIONS
        assert len({len(things) for things in one.options}) == 1


def accuracy(score: Callable[[Story, int], float], stories: Sequence[Story]) -> float:
    """Return the accuracy of choosing the option with the highest score; of equal ones, one is chosen at random."""
    total = 0.0
    for one in stories:
        scores = [score(one, option) for option in range(len(one.options))]
        total += (scores[0] == max(scores)) / scores.count(max(scores))
    return total / len(stories)


def last_mention(one: Story, option: int) -> float:
    return sum(one.prefix().rfind(f"the {thing} ") for thing in one.options[option])


def test_nothing_but_tracking_gives_the_answer() -> None:
    moved = [one for one in STORIES if one.difficulty >= 2]
    assert abs(accuracy(lambda one, option: len(one.completions()[option]), STORIES) - 0.25) < 0.06
    assert abs(accuracy(lambda one, option: -len(one.completions()[option]), STORIES) - 0.25) < 0.06
    assert accuracy(lambda one, option: len(one.options[option] & one.start[one.box]), moved) < 0.25
    assert accuracy(last_mention, STORIES) < 0.3


@pytest.mark.parametrize(("number", "operations"), [(4, 0), (4, 20), (12, 20), (7, 12)])
def test_the_bounds_of_the_options(number: int, operations: int) -> None:
    for index in range(5):
        difficulty = index * operations // 4
        assert story(0, index, boxes=number, operations=operations, difficulty=difficulty).difficulty == difficulty
