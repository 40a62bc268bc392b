"""The exact mixture: every batch holds the same number of synthetic rows, and the step alone decides which.

`int(batch * ratio)` rows of each batch come from the synthetic pool (Ulm, Du and Snaebjarnarson, arXiv 2510.08245). The
ratio is taken as it is written: 0.29 of 100 rows are 29, although the float nearest to 0.29 is smaller. Each pool is
read block by block, pass after pass, whatever the length of the other pool. There is no state: the blocks of step s
follow from s. A resumed run therefore reads the same batches, and so does any number of processes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cdgen.errors import InputError
from cdgen.training.config import split_batch
from cdgen.training.tokens import Pool, permutation

_STREAM = 2  # random stream of the mixture; pools use 0 and 1


class Row(NamedTuple):
    """One row of a batch: block `number` of `pool`, counted over all passes."""

    pool: Pool
    number: int


class Mixture:
    """The batches of a training run.

    Args:
        real: pool of real text; may be None if `ratio` is 1.
        synthetic: pool of synthetic text; may be None if `ratio` is 0.
        batch: rows per step, over all processes and micro-batches.
        ratio: share of synthetic rows, 0 to 1.
        seed: seed of the order of rows within a batch.
    Attributes:
        real_rows: real rows per step.
        synthetic_rows: synthetic rows per step.
    Raises:
        InputError: the ratio is out of range or too small for one synthetic row, or a pool that it needs is missing.
    """

    def __init__(self, real: Pool | None, synthetic: Pool | None, batch: int, ratio: float, seed: int) -> None:
        self.batch, self.seed = batch, seed
        self.real_rows, self.synthetic_rows = split_batch(batch, ratio)
        self._pools: list[tuple[Pool, int]] = []  # with their rows per step
        for pool, rows, kind in ((real, self.real_rows, "real"), (synthetic, self.synthetic_rows, "synthetic")):
            if rows and pool is None:
                raise InputError(
                    f"ratio = {ratio}: {rows} rows of every batch are {kind}, but there is no {kind} corpus"
                )
            if rows and pool is not None:
                self._pools.append((pool, rows))

    def rows(self, step: int) -> list[Row]:
        """Return the `batch` rows of a step in their shuffled order; the processes take turns in reading them."""
        rows = [Row(pool, step * per_step + row) for pool, per_step in self._pools for row in range(per_step)]
        return [rows[at] for at in permutation(self.batch, self.seed, _STREAM, step)]

    def blocks(self, step: int, rank: int = 0, world: int = 1) -> npt.NDArray[np.int64]:
        """Return the rows of a step that process `rank` of `world` reads.

        Returns:
            int64 [batch / world, block_size]
        Raises:
            InputError: `world` does not divide the batch.
        """
        check_world(self.batch, world)
        return np.stack([pool.block(number) for pool, number in self.rows(step)[rank::world]])


def check_world(batch: int, world: int) -> None:
    """Raise InputError if `world` processes cannot share the batch evenly."""
    if batch % world:
        raise InputError(f"batch_size = {batch}: cannot be divided evenly among {world} processes")
