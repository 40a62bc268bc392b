"""The running sequences' state on the device: newest tokens, positions and sequence numbers, by cache row.

Every step reads and updates it, so the next step can start before the host has read what was drawn.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cdgen.engine.adjustments import Adjustment, Bias, Penalties, penalty_strengths
from cdgen.engine.backend import Start
from cdgen.engine.bans import bad_word_bans, repeated_ngram_bans, word_table
from cdgen.engine.sampling_params import SamplingParams
from cdgen.hardware import to_device
from cdgen_kernels import SamplingTensors, make_sampling_tensors

_NUM_PARAMETERS = len(SamplingTensors._fields) - 2  # without sequence and position


class Newest(NamedTuple):
    """The newest token of each sequence, which the models have not read."""

    token: torch.Tensor  # int64 [A]
    position: torch.Tensor  # int64 [A], position of that token in its sequence
    sequence: torch.Tensor  # int64 [A], sequence numbers


def sampling_tensors(params: SamplingParams, batch: int, device: torch.device) -> SamplingTensors:
    """Return sampling parameters as tensors [batch], the same in each row."""
    return make_sampling_tensors(
        batch,
        alpha=params.alpha,
        good_weight=params.good_weight,
        contrast_strength=params.contrast_strength,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        device=device,
    )


def varied_sampling_tensors(params: Sequence[SamplingParams], device: torch.device) -> SamplingTensors:
    """Return the sampling parameters of sequences as tensors [len(params)]."""
    names = ("alpha", "good_weight", "contrast_strength", "temperature", "top_k", "top_p", "seed")
    columns: dict[str, Any] = {name: [getattr(each, name) for each in params] for name in names}
    found = make_sampling_tensors(len(params), **columns)  # on the CPU
    return SamplingTensors(*(to_device(each.numpy(), device) for each in found))


class DeviceState:
    """The state of the running sequences, and their sampling parameters.

    Memory stays where it is for the lifetime of an instance, as CUDA graphs require. The exceptions are the tensors of
    stop tokens, bad words and biases, which :meth:`begin` replaces if their content changes.

    Args:
        params: sampling parameters; `begin` replaces them.
        stop_token_ids: tokens that end a sequence.
        bad_words: token sequences that must not be drawn.
        varied: whether each sequence has the parameters of its request instead of `params`. This applies to penalties
            and to what SamplingTensors hold; see :class:`~cdgen.engine.jobs.Job`.
        cache_rows: cache rows are below this number. The row -1 is unused: its token and position are 0.
        max_num_seqs: greatest number of sequences in one batch.
        device: device of the state.
    """

    def __init__(
        self,
        params: SamplingParams,
        stop_token_ids: Sequence[int],
        bad_words: Sequence[Sequence[int]] = (),
        *,
        varied: bool = False,
        cache_rows: int,
        max_num_seqs: int,
        device: torch.device,
    ) -> None:
        # Column r + 1 belongs to cache row r. Unused rows (-1) read column 0. They write to the last column, index -1
        # of the views below, so column 0 stays 0. The table has the fields of Newest, and the position from which stop
        # tokens may be drawn.
        self._table = torch.zeros(4, cache_rows + 2, dtype=torch.long, device=device)
        self._token, self._position, *_ = self._table[:, 1:].unbind()
        self._stop_from = self._table[3]
        self._sampling = sampling_tensors(params, max_num_seqs, device)
        self._rows = self._sampling  # as many rows of it as the last batch had
        # Parameters of each sequence; column r + 1 belongs to cache row r. Only used if they vary, or penalties apply.
        self._own_sampling = sampling_tensors(params, cache_rows + 2, device)
        self._penalties = torch.ones(3, cache_rows + 2, device=device)
        self._history: torch.Tensor | None = None  # int64 [cache_rows + 2, L], all tokens; cache row r is row r + 1
        self._stop = self._table.new_empty(0)  # int64, the stop tokens that `min_tokens` bans
        self._stop_token_ids: list[int] = []  # the same on the host
        self._words: torch.Tensor | None = None  # int64 [W, L], see bad_word_bans
        self._bad_words: list[list[int]] = []  # the same on the host
        self._bias: Bias | None = None
        self._logit_bias: tuple[tuple[int, float], ...] = ()  # the same on the host
        self._set(params, stop_token_ids, bad_words, varied)

    def begin(
        self,
        params: SamplingParams,
        stop_token_ids: Sequence[int],
        bad_words: Sequence[Sequence[int]] = (),
        varied: bool = False,
    ) -> None:
        """Replace the sampling parameters."""
        new = sampling_tensors(params, len(self._sampling.margin), self._sampling.margin.device)
        for own, value in zip(self._sampling, new, strict=True):
            own.copy_(value)
        self._set(params, stop_token_ids, bad_words, varied)

    def _set(
        self,
        params: SamplingParams,
        stop_token_ids: Sequence[int],
        bad_words: Sequence[Sequence[int]],
        varied: bool,
    ) -> None:
        # A tensor whose content stays the same is kept, since kept graphs read it.
        stops = list(stop_token_ids) if params.min_tokens else []
        if stops != self._stop_token_ids:
            self._stop_token_ids, self._stop = stops, self._table.new_tensor(stops)
        words = list(map(list, bad_words))
        if words != self._bad_words:
            self._bad_words, self._words = words, word_table(words, self._table.device)
        if params.logit_bias != self._logit_bias:
            self._logit_bias, self._bias = params.logit_bias, Bias.of(params, self._table.device)
        self._params, self._varied = params, varied
        longest_word = 0 if self._words is None else self._words.shape[1]
        self._needs_history = bool(params.no_repeat_ngram_size) or params.penalizes or longest_word > 1

    def start(self, cache_row: torch.Tensor, starts: Sequence[Start], max_length: int) -> Newest:
        """Set the state of new sequences to the last tokens of their prompts, and return it.

        Args:
            cache_row: int64 [A], distinct.
            starts: the sequences, in the order of `cache_row`.
            max_length: number of tokens of the longest sequence, the same in each call.
        """
        prompts = [request.token_ids for request, continuations in starts for _ in continuations]
        numbers = [request.sequence_number(index) for request, continuations in starts for index in continuations]
        last = [len(prompt) - 1 for prompt in prompts]
        stop_from = [len(prompt) + self._params.min_tokens for prompt in prompts]
        state = to_device([[prompt[-1] for prompt in prompts], last, numbers, stop_from], self._table.device)
        self._table[:, cache_row + 1] = state
        if self._varied or self._params.penalizes:
            self._set_own(cache_row, [request.params or self._params for request, indices in starts for _ in indices])
        if self._needs_history:
            if self._history is None:
                self._history = self._table.new_zeros(self._table.shape[1], max_length)
            width = max(last) + 1
            padded = [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts]
            self._history[cache_row + 1, :width] = to_device(padded, self._history.device)
        return Newest(*state[:3])

    def _set_own(self, cache_row: torch.Tensor, params: Sequence[SamplingParams]) -> None:
        """Set the sampling parameters of new sequences."""
        self._penalties[:, cache_row + 1] = to_device(penalty_strengths(params), cache_row.device)
        if self._varied:
            for own, value in zip(self._own_sampling, varied_sampling_tensors(params, cache_row.device), strict=True):
                own[cache_row + 1] = value

    def newest(self, cache_row: torch.Tensor) -> Newest:
        """Return the newest token of each sequence. Unused rows have token and position 0.

        Args:
            cache_row: int64 [A]; -1 for unused rows.
        """
        return Newest(*self._table.index_select(1, cache_row + 1).unbind()[:3])

    def sampling(self, cache_row: torch.Tensor, position: torch.Tensor, sequence: torch.Tensor) -> SamplingTensors:
        """Return the sampling parameters [A] of these rows for tokens at `position` of `sequence`, all int64 [A]."""
        if self._varied:
            own = [x.index_select(0, cache_row + 1) for x in self._own_sampling[:_NUM_PARAMETERS]]
            return SamplingTensors(*[*own, sequence, position])
        if len(position) != len(self._rows.margin):
            self._rows = SamplingTensors(*(x.narrow(0, 0, len(position)) for x in self._sampling))
        return self._rows._replace(sequence=sequence, position=position)

    def banned(self, cache_row: torch.Tensor, position: torch.Tensor) -> torch.Tensor | None:
        """Return the tokens that may not be drawn: stop tokens before `min_tokens`, repeated n-grams, and bad words.

        Args:
            cache_row: int64 [A].
            position: int64 [A], positions of the tokens to be drawn.
        Returns:
            int64 [A, N] token ids, -1 for no ban; or None.
        """
        bans = []
        if len(self._stop):
            early = position < self._stop_from.index_select(0, cache_row + 1)
            bans.append(torch.where(early.unsqueeze(1), self._stop, -1))
        history = self._history_of(cache_row)
        if self._params.no_repeat_ngram_size and history is not None:
            bans.append(repeated_ngram_bans(history, position, self._params.no_repeat_ngram_size))
        if self._words is not None:
            bans.append(bad_word_bans(self._words, history, position, self._output_from(cache_row)))
        return torch.cat(bans, 1) if len(bans) > 1 else bans[0] if bans else None

    def adjustment(self, cache_row: torch.Tensor, position: torch.Tensor) -> Adjustment | None:
        """Return the changes of GOOD's logits for tokens at `position`, or None. Arguments as for :meth:`banned`."""
        penalties = None
        if self._params.penalizes and (history := self._history_of(cache_row)) is not None:
            strength = self._penalties.index_select(1, cache_row + 1)
            penalties = Penalties(strength, history, position, self._output_from(cache_row))
        return Adjustment(self._bias, penalties) if penalties or self._bias else None

    def _history_of(self, cache_row: torch.Tensor) -> torch.Tensor | None:
        """Return the tokens of sequences, int64 [A, L], if they are needed."""
        if not self._needs_history or self._history is None:
            return None
        return self._history.index_select(0, cache_row + 1)

    def _output_from(self, cache_row: torch.Tensor) -> torch.Tensor:
        """Return the positions at which continuations begin, int64 [A]."""
        return self._stop_from.index_select(0, cache_row + 1) - self._params.min_tokens

    def append(self, cache_row: torch.Tensor, token: torch.Tensor, position: torch.Tensor) -> None:
        """Make `token` at `position` the newest token of each sequence; all int64 [A]."""
        token = token.clamp(min=0)  # the models cannot read a fault code
        self._token.index_put_((cache_row,), token)
        self._position.index_put_((cache_row,), position)
        if self._needs_history and self._history is not None:
            self._history.narrow(0, 1, len(self._history) - 1).index_put_((cache_row, position), token)
