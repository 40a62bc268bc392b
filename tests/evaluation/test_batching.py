"""How sequences are laid out in rows, and batches of little padding."""

import random

import numpy as np

from cdgen.evaluation.scoring.batching import Row, cut, pack

LARGE = 10**6


def test_a_row_is_a_tree() -> None:
    (row,) = pack([[5, 6, 7], [5, 6, 8, 9], [4], [5, 6, 7]], 100, LARGE)
    assert row == Row(
        tokens=[4, 5, 6, 7, 8, 9],
        positions=[0, 0, 1, 2, 2, 3],
        paths=[(2, [0]), (0, [1, 2, 3]), (3, [1, 2, 3]), (1, [1, 2, 4, 5])],
        is_tree=True,
    )
    assert row.visible().astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 0, 1, 1],
    ]


def test_sequences_that_continue_each_other_are_no_tree() -> None:
    (row,) = pack([[5, 6, 7], [5], [5, 6, 7]], 100, LARGE)
    assert (row.tokens, row.is_tree) == ([5, 6, 7], False)
    np.testing.assert_array_equal(row.visible(), np.tri(3))


def test_a_full_row() -> None:
    sequences = [[1, 2, 3], [1, 2, 4], [1, 5, 6], [7, 8, 9]]
    assert [row.tokens for row in pack(sequences, 7, LARGE)] == [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    # A row takes twice its first sequence, even if that is more than the width.
    assert [row.tokens for row in pack(sequences, 1, LARGE)] == [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert [row.tokens for row in pack(sequences, 7, 5)] == [[1, 2, 3, 4], [1, 5, 6], [7, 8, 9]]
    assert [row.tokens for row in pack(sequences, 7, 0)] == sequences


def test_a_long_context_is_shared_by_many() -> None:
    context = list(range(1000))
    rows = pack([[*context, 2000 + number, 1] for number in range(1000)], 96, LARGE)
    assert len(rows) == 2
    assert sum(map(len, rows)) < 4005


def test_equal_sequences_and_sequences_without_tokens() -> None:
    assert [row.tokens for row in pack([[1, 2], [1, 2]], 7, 0)] == [[1, 2]]
    assert [row.paths for row in pack([[], []], 7, LARGE)] == [[(0, []), (1, [])]]
    assert pack([], 7, LARGE) == []


def test_paths_give_the_sequences_back() -> None:
    draw = random.Random(0)
    for _ in range(200):
        sequences = [[draw.randrange(3) for _ in range(draw.randrange(8))] for _ in range(draw.randrange(12))]
        rows = pack(sequences, draw.randrange(1, 20), draw.randrange(30))
        found = {index: ([row.tokens[at] for at in path], path, row) for row in rows for index, path in row.paths}
        assert len(found) == sum(len(row.paths) for row in rows) == len(sequences)
        for index, (tokens, path, row) in found.items():
            assert tokens == sequences[index]
            assert [row.positions[at] for at in path] == list(range(len(path)))
            for at, place in enumerate(path):
                assert np.flatnonzero(row.visible()[place]).tolist() == path[: at + 1]


def test_batches() -> None:
    def lengths(budget: int, padding: int) -> list[list[int]]:
        return [list(part) for part in cut([9, 8, 5, 5, 4, 1], int, budget, padding)]

    assert lengths(100, 100) == [[9, 8, 5, 5, 4, 1]]
    assert lengths(18, 100) == [[9, 8], [5, 5, 4], [1]]
    assert lengths(100, 1) == [[9, 8], [5, 5, 4], [1]]
    assert lengths(1, 100) == [[9], [8], [5], [5], [4], [1]]
    assert list(cut([], int, 1, 1)) == []
