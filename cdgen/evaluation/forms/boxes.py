"""Stories about boxes whose contents change, and questions about what is in a box at the end.

A story has the English of Kim and Schuster, "Entity Tracking in Language Models" (ACL 2023, section 3): what is in each
box, operations that put, remove and move objects, and the beginning of a sentence about one of the boxes. The options
that may complete it name equally many objects, in alphabetical order, so that neither length nor order gives the right
one away. All stories of a task have equally many operations; the number of those that concern the box in question is
the difficulty, as in the paper. The wrong options are made from what the box held at first, from what it held before
the last operation that concerns it, from the objects that are named last, and from the contents of other boxes. They
tempt a model that ignores operations, or that prefers recent words; docs/lab-notes.md says how far that gets.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

_NAMES = (
    "apple bag ball bell bill boat bone book bottle bowl bread brush cake camera candle card chain clock coat "
    "coin cross crown cup doll drum egg engine fan flag flower fork gift glass glove guitar hammer hat jar key "
    "kite knife ladder lamp leaf letter map mirror needle newspaper note orange painting pan paper pen picture "
    "pillow pipe plate radio ring rope rose scarf shell shirt shoe spoon stamp stone string tape ticket toy watch "
    "wheel whistle"
)
OBJECTS = tuple(_NAMES.split())
MOST_PER_BOX = 3
WRONG_OPTIONS = 3
MOST_BOXES, MOST_OPERATIONS = 12, 20  # with more, a story might need more objects than there are
_ATTEMPTS = 10_000

Contents: TypeAlias = tuple[frozenset[str], ...]  # the objects in each box


class Operation(NamedTuple):
    """One change of what is in the boxes.

    Attributes:
        kind: put an object into `target`; remove one from `source`; move one, or all contents, from `source` to
            `target`.
        thing: the object; "" if all contents are moved.
        source: number of the box from which something is taken, or None.
        target: number of the box that receives something, or None.
    """

    kind: Literal["put", "remove", "move", "move all"]
    thing: str
    source: int | None
    target: int | None

    def text(self) -> str:
        """Return the operation as an English sentence."""
        sentences = {
            "put": f"Put the {self.thing} into Box {self.target}.",
            "remove": f"Remove the {self.thing} from Box {self.source}.",
            "move": f"Move the {self.thing} from Box {self.source} to Box {self.target}.",
            "move all": f"Move the contents of Box {self.source} to Box {self.target}.",
        }
        return sentences[self.kind]

    def concerns(self, box: int) -> bool:
        """Return whether the operation changes what is in a box."""
        return box in (self.source, self.target)

    def apply(self, contents: Contents) -> Contents:
        """Return what is in the boxes after the operation.

        Raises:
            ValueError: the story is impossible: the source lacks the object, or a box has it already.
        """
        boxes = list(contents)
        things = frozenset([self.thing])
        if self.source is not None:
            things = boxes[self.source] if self.kind == "move all" else things
            if not things or not things <= boxes[self.source]:
                raise ValueError(f"{self.text()} Box {self.source} contains {named(boxes[self.source])}")
            boxes[self.source] -= things
        if self.target is not None:
            if any(things & box for box in boxes):
                raise ValueError(f"{self.text()} It is in a box already")
            boxes[self.target] |= things
        return tuple(boxes)


class Story(NamedTuple):
    """A story and a question about one of its boxes.

    Attributes:
        start: what is in the boxes at first.
        operations: what happens, in order.
        box: number of the box in question.
        options: possible contents of the box at the end; the first is right.
    """

    start: Contents
    operations: tuple[Operation, ...]
    box: int
    options: tuple[frozenset[str], ...]

    @property
    def difficulty(self) -> int:
        """The number of operations that concern the box."""
        return sum(one.concerns(self.box) for one in self.operations)

    def prefix(self) -> str:
        """Return the story up to the contents of the box in question, without a space at the end."""
        start = ", ".join(f"Box {box} contains {named(things)}" for box, things in enumerate(self.start))
        return " ".join([f"{start}.", *(one.text() for one in self.operations), f"Box {self.box} contains"])

    def completions(self) -> list[str]:
        """Return the options as completions of the prefix, with a space at the beginning and a full stop."""
        return [f" {named(things)}." for things in self.options]


def named(things: Iterable[str]) -> str:
    """Return objects as English text in alphabetical order, "nothing" if there are none."""
    return " and ".join(f"the {thing}" for thing in sorted(things)) or "nothing"


def story(seed: int, index: int, *, boxes: int, operations: int, difficulty: int) -> Story:
    """Make a story, which depends on the arguments only.

    Args:
        seed: random seed.
        index: number of the story.
        boxes: number of boxes, 4 to 12.
        operations: number of operations, 0 to 20.
        difficulty: how many of them concern the box in question, at most `operations`.
    Returns:
        The story. If `difficulty` is not 0, the contents of the box at the end differ from those at first.
    """
    source = random.Random(f"{seed} {index} {boxes} {operations} {difficulty}")
    for _ in range(_ATTEMPTS):
        found = _attempt(source, boxes, operations, difficulty)
        if found is not None:
            return found
    raise AssertionError("every attempt at a story failed")


def _attempt(source: random.Random, boxes: int, operations: int, difficulty: int) -> Story | None:
    unused = source.sample(OBJECTS, len(OBJECTS))
    start = tuple(frozenset(unused.pop() for _ in range(source.choice(range(MOST_PER_BOX + 1)))) for _ in range(boxes))
    box = source.randrange(boxes)
    concerned = source.sample([True] * difficulty + [False] * (operations - difficulty), operations)
    states, done = [start], []
    for concerns in concerned:
        choices = [one for one in _possible(states[-1], unused[-1]) if one.concerns(box) == concerns]
        kinds = sorted({one.kind for one in choices})
        if not kinds:
            return None
        kind = source.choice(kinds)
        done.append(source.choice([one for one in choices if one.kind == kind]))
        if kind == "put":
            unused.pop()
        states.append(done[-1].apply(states[-1]))
    right = states[-1][box]
    if not right or (difficulty > 0 and right == start[box]):
        return None
    wrong = _wrong_options(source, states, done, box)
    return Story(start, tuple(done), box, (right, *wrong)) if len(wrong) == WRONG_OPTIONS else None


def _possible(contents: Contents, new: str) -> list[Operation]:
    """Return the operations that leave at most MOST_PER_BOX objects in each box; `new` is in no box yet."""
    found = []
    for box, things in enumerate(contents):
        if len(things) < MOST_PER_BOX:
            found.append(Operation("put", new, None, box))
        found += [Operation("remove", thing, box, None) for thing in sorted(things)]
        for target, others in enumerate(contents):
            if target == box:
                continue
            if len(others) < MOST_PER_BOX:
                found += [Operation("move", thing, box, target) for thing in sorted(things)]
            if len(things) > 1 and len(things) + len(others) <= MOST_PER_BOX:
                found.append(Operation("move all", "", box, target))
    return found


def _wrong_options(
    source: random.Random, states: Sequence[Contents], operations: Sequence[Operation], box: int
) -> list[frozenset[str]]:
    """Return distinct sets of as many objects as the box has at the end, the most tempting ones first."""
    right = states[-1][box]
    others = [things for other, things in enumerate(states[-1]) if other != box and things]
    rest = [thing for things in others for thing in sorted(things)]
    recent = [one.thing for one in reversed(operations) if one.thing and one.thing not in right]
    tempting = [frozenset(recent[: len(right)]), *source.sample(others, len(others))]
    concerned = [at for at, one in enumerate(operations) if one.concerns(box)]
    if concerned:
        tempting = [states[0][box], states[concerned[-1]][box], *tempting]
    found: list[frozenset[str]] = []
    for things in tempting:
        option = _of_size(source, things, right, rest)
        if option is not None and option not in found and len(found) < WRONG_OPTIONS:
            found.append(option)
    return found


def _of_size(
    source: random.Random, things: frozenset[str], right: frozenset[str], rest: Sequence[str]
) -> frozenset[str] | None:
    """Return a wrong option: `things`, the wrong ones first, filled up from `rest`; None if there is none."""
    wrong, shared = sorted(things - right), sorted(things & right)
    order = [*source.sample(wrong, len(wrong)), *source.sample(shared, len(shared)), *source.sample(rest, len(rest))]
    option = frozenset(list(dict.fromkeys(order))[: len(right)])
    return option if option != right and len(option) == len(right) else None
