"""Log-probabilities of tokens, in batches. Shared prefixes are computed once, and logits are not stored.

Sequences with a shared prefix are read as a tree in one row. Each token has the position that it has in its own
sequence, and attends to the tokens of its own sequence only (tree attention, Miao et al., arXiv 2305.09781, section 4).
So no KV cache is needed, and rows have similar lengths, with little padding.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import cdgen_kernels  # noqa: F401  (registers the ops)
from cdgen.errors import InputError
from cdgen.evaluation.scoring.batching import Row, cut, default_batch_tokens, pack
from cdgen.evaluation.scoring.conventions import Tokens
from cdgen.models.language_model import LanguageModel

_ROW_TOKENS = 96  # number of tokens in a row of short sequences
_PADDING = 16  # at most one token in 16 is padding
_LOGITS = 2**24  # logits in memory at once
_ALL_LOGITS = 2**26  # the same for models that do more to their logits than a matrix product
_PROBE = ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 9, 8, 7, 6, 5])  # two sequences with a common beginning
_ROUNDING = {torch.float16: 0.05, torch.bfloat16: 0.2}  # tolerance of the comparison of log-probabilities


class TokenScores(NamedTuple):
    """Scores of the scored tokens of a sequence."""

    logprobs: NDArray[np.float64]  # [T], natural logarithm
    greedy: NDArray[np.bool_]  # [T], whether the token is the most probable one


def joined_scores(parts: Sequence[TokenScores]) -> TokenScores:
    """Return the scores of a sequence that was scored in parts."""
    logprobs = np.concatenate([np.empty(0), *(part.logprobs for part in parts)])
    return TokenScores(logprobs, np.concatenate([np.empty(0, bool), *(part.greedy for part in parts)]))


class Scorer:
    """Computes log-probabilities of tokens.

    Args:
        model: the model.
        batch_tokens: maximum number of tokens in one forward pass, padding included; default: 1024 on the CPU, 16384
            on a GPU, and fewer if the logits would take too much memory. A longer sequence has a pass of its own.
    """

    def __init__(self, model: LanguageModel, batch_tokens: int | None = None) -> None:
        self._model = model
        self._budget = batch_tokens or default_batch_tokens(model.device)
        self._is_product = _logits_are_a_product(model)
        if not self._is_product:
            self._budget = max(1, min(self._budget, _ALL_LOGITS // model.width))
        self._widest = _window(model) if self._reads_trees() else 0

    def score(self, sequences: Sequence[Tokens], report: Callable[[int], None]) -> list[TokenScores]:
        """Return the scores of sequences.

        Args:
            sequences: token ids, and which of them are scored.
            report: called after each batch with the number of finished sequences.
        Returns:
            The scores of each sequence, in the same order.
        Raises:
            InputError: a token id is out of the model's range, or a batch does not fit into the memory of a GPU.
        """
        results = _Results(sequences)
        largest = max((max(ids) for ids, _ in sequences), default=0)
        if largest >= self._model.width:
            raise InputError(
                f"{self._model.name}: the tokenizer gives the token id {largest}, but the model has "
                f"{self._model.width} tokens; they do not belong together"
            )
        rows = pack([ids[:-1] for ids, _ in sequences], _ROW_TOKENS, self._widest)
        done = 0
        with torch.inference_mode():
            for batch in self._batches(rows):
                try:
                    self._score_batch(batch, sequences, results)
                except torch.OutOfMemoryError as error:
                    raise InputError(
                        f"{self._model.name}: batches of {self._budget} tokens do not fit into the memory of "
                        f"{self._model.device}; use a smaller batch_tokens"
                    ) from error
                done += sum(len(row.paths) for row in batch)
                report(done)
        return results.scores()

    def _reads_trees(self) -> bool:
        """Return whether two sequences in one row get the same log-probabilities as each of them alone.

        They do not if the model derives positions from the places in a row, or ignores or rejects such a mask.
        """
        ids = [[at % self._model.width for at in sequence] for sequence in _PROBE]
        given = [Tokens(sequence, 1) for sequence in ids]
        found = []
        for widest in (0, 100):
            results = _Results(given)
            try:
                with torch.inference_mode():
                    for row in pack([sequence[:-1] for sequence in ids], 100, widest):
                        self._score_batch([row], given, results)
            except Exception:  # models differ in what they raise
                return False
            found.append(np.concatenate([score.logprobs for score in results.scores()]))
        alone, together = found
        tolerance = _ROUNDING.get(self._model.module.dtype, 1e-3)
        return bool(np.allclose(alone, together, rtol=tolerance, atol=tolerance))

    def _batches(self, rows: list[Row]) -> list[Sequence[Row]]:
        """Return batches of rows, all trees or none of them; the longest come first."""
        rows = sorted(rows, key=len, reverse=True)
        kinds = ([row for row in rows if row.is_tree], [row for row in rows if not row.is_tree])
        batches = [batch for kind in kinds for batch in cut(kind, len, self._budget, self._budget // _PADDING)]
        return sorted(batches, key=lambda batch: -len(batch[0]))

    def _score_batch(self, rows: Sequence[Row], sequences: Sequence[Tokens], results: "_Results") -> None:
        """Run the model on rows and store the scores of their sequences."""
        width = len(rows[0])
        inputs = {"input_ids": self._padded([row.tokens for row in rows], width)}
        if rows[0].is_tree:
            inputs["position_ids"] = self._padded([row.positions for row in rows], width)
            inputs["attention_mask"] = self._mask(rows)
        # Otherwise nothing needs a mask: padding is on the right, and no token attends to later ones.
        targets = _Targets()
        for at, row in enumerate(rows):
            for index, path in row.paths:
                ids, first = sequences[index]
                places = [at * width + place for place in path[first - 1 :]]
                targets.add(places, ids[first:], results.place(index))
        self._run(inputs, targets, results)

    def _mask(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return the additive attention mask of rows, [B, 1, T, T]: 0 at tokens to attend to."""
        width = len(rows[0])
        hidden = np.broadcast_to(~np.eye(width, dtype=bool), (len(rows), width, width)).copy()  # padding sees itself
        for table, row in zip(hidden, rows, strict=True):
            table[: len(row), : len(row)] = ~row.visible()
        mask = torch.zeros(len(rows), 1, width, width, dtype=self._model.module.dtype, device=self._model.device)
        return mask.masked_fill_(self._tensor(hidden)[:, None], torch.finfo(mask.dtype).min)

    def _padded(self, rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
        """Return rows of numbers as int64 [B, width], with zeros after them."""
        table = np.zeros((len(rows), width), dtype=np.int64)
        for line, row in zip(table, rows, strict=True):
            line[: len(row)] = row
        return self._tensor(table)

    def _run(self, inputs: dict[str, torch.Tensor], targets: "_Targets", results: "_Results") -> None:
        """Run one forward pass and store the scores of its targets."""
        places, rows, tokens, slots = targets.arrays()
        if not self._is_product:
            states = self._own_logits(inputs, self._tensor(places))  # [N, V]
        else:
            hidden = self._model.module.base_model(**inputs, use_cache=False).last_hidden_state  # [B, T, D]
            states = hidden.reshape(-1, hidden.shape[-1])[self._tensor(places)]  # [N, D]
        size = max(1, _LOGITS // self._model.width)
        for start in range(0, len(places), size):
            begin, end = np.searchsorted(rows, (start, start + size))
            chunk = states[start : start + size]
            logits = self._logits(chunk)
            chosen = self._tensor(np.stack([rows[begin:end] - start, tokens[begin:end]]))  # [2, targets]
            results.store(slots[begin:end], *_scores(logits, *chosen))

    def _own_logits(self, inputs: dict[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
        """Return the model's own logits [N, V] at these places only: a hook drops the other inputs of the LM head."""
        head = self._model.module.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, 1)[places][None],))
        try:
            logits: torch.Tensor = self._model.module(**inputs, use_cache=False).logits[0]
        finally:
            hook.remove()
        return logits

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits [N, V] in float32."""
        if not self._is_product:
            return states.float()
        weight = self._model.module.get_output_embeddings().weight
        if weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16):
            return torch.mm(states, weight.t(), out_dtype=torch.float32)
        return torch.mm(states, weight.t()).float()

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._model.device)


def _scores(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each token, and whether it is the greatest in its row.

    Args:
        logits: float32 [N, V], overwritten.
        rows: int64 [T], row of `logits` of each token.
        tokens: int64 [T].
    """
    best, at = logits.max(1)  # [N]
    margin = logits[rows, tokens] - best[rows]
    loss = torch.ops.cdgen.softmax_gradient(logits, at, -100, False)  # -log of the greatest probability, [N]
    return margin - loss[rows], at[rows] == tokens


class _Targets:
    """The tokens to score in one forward pass, and where their predictions are."""

    def __init__(self) -> None:
        self._places: list[int] = []
        self._tokens: list[int] = []
        self._slots: list[int] = []

    def add(self, places: list[int], tokens: list[int], slot: int) -> None:
        """Add tokens that are predicted at these places of the flat output; their results are stored from `slot` on."""
        self._places += places
        self._tokens += tokens
        self._slots += range(slot, slot + len(tokens))

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return distinct places [N]; and [T], sorted by place, each target's index of its place, token and slot."""
        places, tokens, slots = np.array([self._places, self._tokens, self._slots])
        distinct, index = np.unique(places, return_inverse=True)
        order = np.argsort(index, kind="stable")
        return distinct, index[order], tokens[order], slots[order]


class _Results:
    """Scores of all sequences, one after the other."""

    def __init__(self, sequences: Sequence[Tokens]) -> None:
        self._starts = np.cumsum([0, *(len(ids) - first for ids, first in sequences)])
        self._logprobs = np.empty(self._starts[-1])
        self._greedy = np.empty(self._starts[-1], dtype=bool)

    def place(self, sequence: int) -> int:
        """Return the place of the first scored token of a sequence."""
        return int(self._starts[sequence])

    def store(self, slots: NDArray[np.int64], logprobs: torch.Tensor, greedy: torch.Tensor) -> None:
        """Store scores in places."""
        self._logprobs[slots] = logprobs.cpu().numpy()
        self._greedy[slots] = greedy.cpu().numpy()

    def scores(self) -> list[TokenScores]:
        """Return the scores of each sequence."""
        bounds = zip(self._starts[:-1], self._starts[1:], strict=True)
        return [TokenScores(self._logprobs[start:end], self._greedy[start:end]) for start, end in bounds]


def _logits_are_a_product(model: LanguageModel) -> bool:
    """Return whether the model's logits are its last hidden states times a matrix, and nothing else.

    Raises:
        InputError: it has no output layer of its own.
    """
    module = model.module
    head = module.get_output_embeddings()
    if head is None:
        raise InputError(f"{model.name}: {module.config.model_type} states no output embeddings; not supported")
    if module.base_model is module or getattr(head, "bias", None) is not None:
        return False
    ids = torch.arange(min(8, model.width), device=model.device)[None]  # [1, 8]
    with torch.inference_mode():
        hidden = getattr(module.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)  # [1, 8, D]
        if hidden is None or hidden.shape[-1:] != head.weight.shape[1:]:
            return False
        product = torch.nn.functional.linear(hidden, head.weight)
        return torch.equal(product, module(input_ids=ids, use_cache=False).logits)


def _window(model: LanguageModel) -> int:
    """Return the greatest distance at which all tokens attend to each other, whatever the model's layers are."""
    config = model.module.config.get_text_config()
    stated = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
    return min((size for size in stated if isinstance(size, int) and size > 0), default=sys.maxsize)
