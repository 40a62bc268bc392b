"""The sampling parameters of a batch, as tensors for the ops."""

import torch

from cdgen.engine.requests import RunningBatch
from cdgen.engine.sampling_params import SamplingParams
from cdgen_kernels import SamplingTensors, make_sampling_tensors


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


class BatchSampling:
    """Repeats the sampling parameters of a call, which are the same for all sequences, for every row of a batch."""

    def __init__(self, params: SamplingParams, device: torch.device) -> None:
        self._one_row = sampling_tensors(params, 1, device)
        self._rows = self._one_row  # grows to the size of the largest batch

    def tensors(self, batch: RunningBatch) -> SamplingTensors:
        """Return the parameters for the token of each sequence at `batch.position`, tensors [A]."""
        count = len(batch)
        if len(self._rows.margin) < count:
            self._rows = SamplingTensors(*(x.repeat(count) for x in self._one_row))
        rows = SamplingTensors(*(x[:count] for x in self._rows))
        return rows._replace(sequence=batch.sequence, position=batch.position)
