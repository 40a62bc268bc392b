"""The paged backend that is kept between calls, with its cache and CUDA graphs."""

import contextlib

from cdgen.engine.model_pair import ModelPair
from cdgen.engine.paged_backend import CacheOptions, PagedBackend
from cdgen.engine.sampling_params import SamplingParams
from cdgen.errors import InputError

_GROWTH = 4  # a backend that replaces one for shorter sequences allows 1 / 4 more tokens than that one


class KeptBackend:
    """Holds at most one backend while no call uses it.

    Calls in other threads need backends of their own, so :meth:`take` removes what is kept.
    """

    def __init__(self) -> None:
        self._kept: list[PagedBackend] = []

    def take(
        self,
        pair: ModelPair,
        params: SamplingParams,
        options: CacheOptions,
        *,
        size: int,
        largest: int,
        longest: int,
        varied: bool = False,
    ) -> PagedBackend:
        """Return the backend that is kept if it serves a call; otherwise close it and return a new one.

        Args:
            pair, params, options, varied: see :class:`PagedBackend`.
            size: number of sequences that run at once.
            largest: greatest number of sequences that a kept backend may have room for.
            longest: number of tokens of the longest sequence.
        Raises:
            InputError: see :class:`PagedBackend`.
        """
        try:
            kept = self._kept.pop()
        except IndexError:
            kept = None
        if kept is None:
            return PagedBackend(pair, params, size, longest, varied=varied, **options)
        fits = size <= kept.max_num_seqs <= largest and longest <= kept.max_length
        if fits and kept.options == options and kept.begin(params, varied):
            return kept
        kept.close()
        if longest > kept.max_length:  # the next call's may be longer still, as in a dialogue
            roomy = kept.max_length + kept.max_length // _GROWTH
            roomy = max(longest, min(roomy, pair.position_limit(params) or roomy))
            with contextlib.suppress(InputError):  # the budget may not hold a sequence of that length
                return PagedBackend(pair, params, size, roomy, varied=varied, **options)
        return PagedBackend(pair, params, size, longest, varied=varied, **options)

    def keep(self, backend: PagedBackend) -> None:
        """Keep a backend whose sequences have all finished, instead of the one that is kept."""
        self.close()  # another thread may have kept a backend in the meantime
        self._kept.append(backend)

    def close(self) -> None:
        """Free the cache and the CUDA graphs of the backend that is kept."""
        while self._kept:
            self._kept.pop().close()
