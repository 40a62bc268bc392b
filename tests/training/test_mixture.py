"""The exact mixture: every batch exact, however it is shared out, and passes of each pool on their own."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdgen.errors import InputError
from cdgen.training.mixture import Mixture
from cdgen.training.tokens import Pool
from tests.training.test_token_pools import LENGTHS, Numbers


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_batch_is_exact_and_no_row_comes_twice_in_a_pass(data):
    draw = data.draw
    batch, thousandths = draw(st.integers(1, 40)), draw(st.integers(0, 1000))
    synthetic = batch * thousandths // 1000
    pools = [Pool([Numbers(draw(LENGTHS), first)], 1, 3, "") for first in (0, 10_000)]
    arguments = *pools, batch, thousandths / 1000, draw(st.integers(0, 2**31))
    if thousandths and not synthetic:
        with pytest.raises(InputError, match=f"of {batch} rows in a batch none is synthetic"):
            Mixture(*arguments)
        return
    mixture, seen = Mixture(*arguments), Counter()
    for step in range(draw(st.integers(1, 60))):
        rows = mixture.rows(step)
        assert len(rows) == batch and sum(pool is pools[1] for pool, _ in rows) == synthetic
        seen.update((pool is pools[1], number) for pool, number in rows)
    for kind, pool in enumerate(pools):
        numbers = sorted(number for which, number in seen if which == kind)
        assert numbers == list(range(len(numbers))), "one after another, so that passes end only where they end"
        texts = [int(pool.block(number)[0]) for number in numbers]
        for at in range(0, len(texts), pool.blocks):
            assert len(set(texts[at : at + pool.blocks])) == len(texts[at : at + pool.blocks])
    assert set(seen.values()) == {1}


@pytest.mark.parametrize(("batch", "ratio", "rows"), [(100, 0.29, 29), (10, 0.3, 3), (256, 0.3, 76), (1000, 0.001, 1)])
def test_a_ratio_is_taken_as_it_is_written(batch, ratio, rows):
    """The nearest float of 0.29 is less, and 100 times it is 28.999..."""
    pool = Pool([Numbers([9] * 5)], 4, 3, "")
    assert Mixture(pool, pool, batch, ratio, 0).synthetic_rows == rows


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(0, 200), st.integers(0, 2**31))
def test_processes_share_out_the_batches_of_one(rows, world, start, seed):
    """Resumed anywhere, in any number of processes: nothing is remembered."""
    pools = [Pool([Numbers([9] * 50, first)], 4, 3, "") for first in (0, 10_000)]
    batch = 6 * rows
    alone, shared = (Mixture(*pools, batch, 0.5, seed) for _ in range(2))
    for step in range(start, start + 3):
        parts = [shared.blocks(step, rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {batch // world}
        whole = alone.blocks(step)
        assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())
        assert sum(row[0] >= 10_000 for row in whole) == batch // 2


def test_synthetic_rows_stand_anywhere():
    pools = [Pool([Numbers([9] * 50, first)], 4, 3, "") for first in (0, 10_000)]
    mixture = Mixture(*pools, 12, 0.3, seed=5)
    orders = {tuple(pool is pools[1] for pool, _ in mixture.rows(step)) for step in range(5)}
    assert len(orders) > 1


def test_mixtures_that_cannot_be():
    pool = Pool([Numbers([9] * 5)], 4, 3, "")
    with pytest.raises(InputError, match=r"ratio = 1\.5: must be 0 to 1"):
        Mixture(pool, pool, 10, 1.5, 0)
    with pytest.raises(
        InputError, match=r"ratio = 0\.3: 3 rows of every batch are synthetic, but there is no synthetic"
    ):
        Mixture(pool, None, 10, 0.3, 0)
    with pytest.raises(InputError, match="but there is no real corpus"):
        Mixture(None, pool, 10, 0.3, 0)
    with pytest.raises(InputError, match="4 processes cannot share it out"):
        Mixture(pool, None, 10, 0, 0).blocks(0, 0, 4)
