"""One or both models of a pair on the shared cache: from tokens to last hidden states, and from those to samples."""

from collections.abc import Sequence
from typing import Any

import torch

from cdgen.engine.adjustments import Adjustment
from cdgen.engine.draw import Draws, draw
from cdgen.engine.graphs import give_back_stream, take_stream
from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.shared_cache import SharedKVCache
from cdgen.models.language_model import LanguageModel
from cdgen.models.llama import LlamaRunner
from cdgen_kernels import (
    Samples,
    SamplingTensors,
    gather_logits,
    sample_candidates,
    select_candidates,
    select_candidates_linear,
)


class PairRunner:
    """Runs GOOD, and BAD if there is contrast.

    While a CUDA graph is captured, the models run on two streams: the outputs of :meth:`hidden_states` must go to
    :meth:`sample`, or :meth:`join` must be called before they are used.

    Args:
        models: GOOD, or GOOD and BAD.
        max_length: number of tokens of the longest sequence.
        vocab_size: token ids are below this number.
    Attributes:
        runners: a runner per model.
        stores_logits: whether GOOD's logits are computed before its candidates are selected, as on the CPU.
    """

    def __init__(self, models: Sequence[LanguageModel], max_length: int, vocab_size: int) -> None:
        self.runners = [LlamaRunner(model.module, max_length, model.dropout) for model in models]
        self._modules = [model.module for model in models]
        self._addresses = self._parameter_addresses()
        self._vocab_size = vocab_size
        device = models[0].device
        self.stores_logits = device.type != "cuda"
        self._side = take_stream(device) if device.type == "cuda" and len(models) > 1 else None

    def refresh(self) -> bool:
        """Use changed values of the models' parameters; return False if a parameter was replaced by another tensor."""
        for runner in self.runners:
            runner.refresh()
        return self._addresses == self._parameter_addresses()

    def _parameter_addresses(self) -> list[int]:
        return [parameter.data_ptr() for module in self._modules for parameter in module.parameters()]

    def close(self) -> None:
        """Give back the second stream."""
        if self._side is not None:
            give_back_stream(self._side)
            self._side = None

    def hidden_states(
        self,
        cache: SharedKVCache,
        ids: torch.Tensor,
        position: torch.Tensor,
        cache_row: torch.Tensor,
        seed: torch.Tensor,
        sequence: torch.Tensor,
        prefill: bool = False,
        shared: bool = False,
    ) -> list[torch.Tensor]:
        """Return the last hidden states [N, D] of each model; see :meth:`LlamaRunner.hidden_states`.

        Args:
            cache: has room for the tokens.
            ids, position, cache_row: int64 [N].
            seed: int64 [1], key of a dropout BAD's mask.
            sequence: int64 [N], sequence numbers for that mask.
            prefill: whether the tokens are those of prompts.
            shared: whether attention should read a prefix once for all sequences that share it.
        """
        rows = cache_row.int()
        shared_lengths = cache.shared_lengths.tensor if shared else None

        def run(model: int) -> torch.Tensor:
            layers = cache.stores[model].layers
            return self.runners[model].hidden_states(
                ids, position, rows, cache.page_table, layers, seed, sequence, prefill, shared_lengths
            )

        if self._side is None or not torch.cuda.is_current_stream_capturing():
            return [run(model) for model in range(len(self.runners))]
        self._side.wait_stream(torch.cuda.current_stream())
        rows.record_stream(self._side)  # otherwise its memory is reused once this returns, and BAD may still read it
        with torch.cuda.stream(self._side):
            bad = run(1)
        return [run(0), bad]

    def join(self) -> None:
        """Let the current stream wait for BAD's, if `hidden_states` used one."""
        if self._side is not None and torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().wait_stream(self._side)

    def sample(
        self,
        outputs: Sequence[torch.Tensor],
        sampling: SamplingTensors,
        *,
        banned: torch.Tensor | None,
        adjustment: Adjustment | None,
        params: SamplingParams,
        varied: bool,
    ) -> Draws:
        """Draw from the logits of all tokens.

        Args:
            outputs: last hidden states [A, D] of each model.
            sampling, banned, adjustment, params, varied: see :func:`~cdgen.engine.draw.draw`.
        """
        self.join()
        logits = [runner.logits(x) for x, runner in zip(outputs, self.runners, strict=True)]
        return draw(
            logits[0],
            logits[1] if len(logits) > 1 else None,
            sampling,
            adjustment,
            params,
            vocab_size=self._vocab_size,
            banned=banned,
            varied=varied,
        )

    def sample_listed(
        self,
        outputs: Sequence[torch.Tensor],
        sampling: SamplingTensors,
        *,
        banned: torch.Tensor | None,
        capacity: int,
        adjustment: Adjustment | None,
    ) -> Samples:
        """Draw from GOOD's candidates. BAD's output layer is computed for them only.

        A row with more candidates than `capacity` gets a fault code instead of a token.

        Args:
            outputs: last hidden states [A, D] of GOOD and BAD.
            sampling, banned, capacity: see :func:`cdgen_kernels.select_candidates`.
            adjustment: changes of GOOD's logits, which must then be stored.
        """
        good, bad = self.runners
        options: dict[str, Any] = {"vocab_size": self._vocab_size, "raise_faults": False}
        if self.stores_logits or adjustment is not None:
            logits = good.logits(outputs[0])
            logits = logits if adjustment is None else adjustment.apply(logits)
            found = select_candidates(logits, sampling, banned=banned, capacity=capacity, **options)
        else:
            found = select_candidates_linear(
                outputs[0], good.output_weight, sampling, banned=banned, capacity=capacity, **options
            )
        self.join()
        bad_logits = gather_logits(outputs[1], bad.output_weight, found)
        return sample_candidates(found, bad_logits, sampling, gathered=True, **options)
