"""The exact mixture: so many rows of every batch synthetic, the rest real, as a function of the step alone.

`int(batch * ratio)` rows of each batch come from the synthetic pool (Ulm, Du and Snaebjarnarson, arXiv 2510.08245),
never "about" so many, and with the ratio taken as it is written: 100 rows at 0.29 are 29, though the nearest float is
less than 0.29. Each pool is used up block by block, pass after pass, whatever the length of the other. Nothing
is remembered: which blocks step s reads follows from s, so that a resumed run reads on where it was, and any number of
processes share out the same batches.
"""

from fractions import Fraction

import numpy as np

from cdgen.errors import InputError
from cdgen.training.tokens import permutation

_STREAM = 2  # of random numbers; pools take 0 and 1


class Mixture:
    """The batches of a run.

    Args:
        real: :class:`~cdgen.training.tokens.Pool`, or None where `ratio` is 1. synthetic: the same, or None where 0.
        batch: rows of a step over all processes and accumulated parts.
        ratio: share of synthetic rows, 0 to 1.
        seed: of the order of rows within a batch.
    Raises:
        InputError: a ratio out of range or without effect, or a pool missing that it asks for.
    """

    def __init__(self, real, synthetic, batch, ratio, seed):
        if not 0 <= ratio <= 1:
            raise InputError(f"ratio = {ratio}: must be 0 to 1")
        self.batch, self.seed = batch, seed
        self.synthetic_rows = int(batch * Fraction(str(ratio)))
        self.real_rows = batch - self.synthetic_rows
        if ratio and not self.synthetic_rows:
            raise InputError(f"ratio = {ratio}: of {batch} rows in a batch none is synthetic; raise one or the other")
        self._pools = []
        for pool, rows, kind in ((real, self.real_rows, "real"), (synthetic, self.synthetic_rows, "synthetic")):
            if rows and pool is None:
                raise InputError(
                    f"ratio = {ratio}: {rows} rows of every batch are {kind}, but there is no {kind} corpus"
                )
            self._pools += [(pool, rows)] if rows else []

    def rows(self, step):
        """(pool, block number) of each row of a step, [batch], in the order that the processes share out."""
        found = [(pool, step * rows + row) for pool, rows in self._pools for row in range(rows)]
        return [found[at] for at in permutation(self.batch, self.seed, _STREAM, step)]

    def blocks(self, step, rank=0, world=1):
        """int64 [batch / world, block_size]: the rows of a step that a process of `world` reads."""
        self.check_world(world)
        return np.stack([pool.block(number) for pool, number in self.rows(step)[rank::world]])

    def check_world(self, world):
        """Raise InputError where so many processes cannot share out the batches."""
        if self.batch % world:
            raise InputError(f"batch_size = {self.batch}: {world} processes cannot share it out evenly")
