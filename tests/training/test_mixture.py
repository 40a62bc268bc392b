"""The exact mixture: the share of synthetic rows in every batch, the passes of each pool, and several processes."""

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
def test_every_batch_is_exact_and_a_pass_repeats_no_block(data: st.DataObject) -> None:
    draw = data.draw
    batch, thousandths = draw(st.integers(1, 40)), draw(st.integers(0, 1000))
    synthetic = batch * thousandths // 1000
    pools = [Pool([Numbers(draw(LENGTHS), first)], 1, 3, "") for first in (0, 10_000)]
    arguments = *pools, batch, thousandths / 1000, draw(st.integers(0, 2**31))
    if thousandths and not synthetic:
        with pytest.raises(InputError, match=f"none of the {batch} rows of a batch is synthetic"):
            Mixture(*arguments)
        return
    mixture, seen = Mixture(*arguments), Counter()
    for step in range(draw(st.integers(1, 60))):
        rows = mixture.rows(step)
        assert len(rows) == batch and sum(pool is pools[1] for pool, _ in rows) == synthetic
        seen.update((pool is pools[1], number) for pool, number in rows)
    for kind, pool in enumerate(pools):
        numbers = sorted(number for which, number in seen if which == kind)
        assert numbers == list(range(len(numbers))), "blocks are read in order, with none left out"
        texts = [int(pool.block(number)[0]) for number in numbers]
        for at in range(0, len(texts), pool.blocks):
            assert len(set(texts[at : at + pool.blocks])) == len(texts[at : at + pool.blocks])
    assert set(seen.values()) == {1}


@pytest.mark.parametrize(("batch", "ratio", "rows"), [(100, 0.29, 29), (10, 0.3, 3), (256, 0.3, 76), (1000, 0.001, 1)])
def test_the_ratio_is_taken_as_it_is_written(batch: int, ratio: float, rows: int) -> None:
    """The float nearest to 0.29 is smaller: 100 times it is 28.999..."""
    pool = Pool([Numbers([9] * 5)], 4, 3, "")
    assert Mixture(pool, pool, batch, ratio, 0).synthetic_rows == rows


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(0, 200), st.integers(0, 2**31))
def test_several_processes_read_the_same_batches_as_one(rows: int, world: int, start: int, seed: int) -> None:
    """The mixture has no state, so this holds from any step on."""
    pools = [Pool([Numbers([9] * 50, first)], 4, 3, "") for first in (0, 10_000)]
    batch = 6 * rows
    alone, shared = (Mixture(*pools, batch, 0.5, seed) for _ in range(2))
    for step in range(start, start + 3):
        parts = [shared.blocks(step, rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {batch // world}
        whole = alone.blocks(step)
        assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())
        assert sum(row[0] >= 10_000 for row in whole) == batch // 2


def test_synthetic_rows_are_shuffled_into_the_batch() -> None:
    pools = [Pool([Numbers([9] * 50, first)], 4, 3, "") for first in (0, 10_000)]
    mixture = Mixture(*pools, 12, 0.3, seed=5)
    orders = {tuple(pool is pools[1] for pool, _ in mixture.rows(step)) for step in range(5)}
    assert len(orders) > 1


def test_impossible_mixtures_are_refused() -> None:
    pool = Pool([Numbers([9] * 5)], 4, 3, "")
    with pytest.raises(InputError, match=r"ratio = 1\.5: must be 0 to 1"):
        Mixture(pool, pool, 10, 1.5, 0)
    with pytest.raises(
        InputError, match=r"ratio = 0\.3: 3 rows of every batch are synthetic, but there is no synthetic"
    ):
        Mixture(pool, None, 10, 0.3, 0)
    with pytest.raises(InputError, match="but there is no real corpus"):
        Mixture(None, pool, 10, 0.3, 0)
    with pytest.raises(InputError, match="cannot be divided evenly among 4 processes"):
        Mixture(pool, None, 10, 0, 0).blocks(0, 0, 4)
