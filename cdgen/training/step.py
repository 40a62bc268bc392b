"""One training step: batch, loss, gradients, the optimizer's update, and the metrics."""

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from cdgen.errors import InputError
from cdgen.training.config import TrainConfig
from cdgen.training.mixture import Mixture
from cdgen.training.signals import Signals
from cdgen.training.state import TrainingState

_NOISE = 3  # random stream of dropout; pools use 0 and 1, the mixture 2
REMEDY = "lower learning_rate, or train in float32"  # for a run that diverges
_CLIP = 1.0  # largest norm of the gradient, as in transformers' Trainer


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a step over all processes; the times are those of this process."""

    loss: float  # mean per predicted token
    learning_rate: float
    gradient_norm: float  # before clipping
    seconds: float
    loading_seconds: float  # time to read the batch
    tokens_per_second: float
    mfu: float | None  # model FLOPs utilization: share of the peak FLOP/s, 0 to 1; None if the peak is not known


class Step(NamedTuple):
    """The result of a step: its metrics, and the signal that asked a process to stop, or 0."""

    metrics: StepMetrics
    stop: int


def train_step(
    config: TrainConfig,
    accelerator: Accelerator,
    mixture: Mixture,
    state: TrainingState,
    peak: float | None,
    signals: Signals,
    after_micro_batch: Callable[[int, int], None],
) -> Step:
    """Train on the next batch and advance `state`; all processes call it together.

    Args:
        peak: peak FLOP/s of one process's device, if it is known.
        signals: catches the signals of this process.
        after_micro_batch: called with the number of micro-batches of the step that this process has finished, and with
            the number of all of them.
    Raises:
        InputError: the loss or the gradient is not finite. The weights are those before the step.
    """
    start = time.perf_counter()
    rank, world = accelerator.process_index, accelerator.num_processes
    key = np.random.SeedSequence((config.seed, _NOISE, state.step, rank))
    torch.manual_seed(int(key.generate_state(1)[0]))  # dropout depends on the seed, the step and the process alone
    blocks = torch.from_numpy(mixture.blocks(state.step, rank, world))  # [batch_size / world, block_size]
    loading = time.perf_counter() - start
    loss = _accumulate_gradients(config, accelerator, state, blocks, after_micro_batch)
    norm = float(accelerator.clip_grad_norm_(state.model.parameters(), _CLIP))
    loss_and_signal = torch.stack([loss, loss.new_tensor(signals.number)])
    mean_loss, stop = accelerator.reduce(loss_and_signal).tolist()
    for name, value in (("loss", mean_loss), ("norm of the gradient", norm)):
        if not math.isfinite(value):
            raise InputError(f"step {state.step + 1}: the {name} is {value}; {REMEDY}")
    rate = float(state.schedule.get_last_lr()[0])
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad()
    state.step += 1
    seconds = time.perf_counter() - start
    tokens = config.batch_size * config.block_size
    mfu = state.operations * tokens / (seconds * peak * world) if peak else None
    metrics = StepMetrics(mean_loss, rate, norm, seconds, loading, tokens / seconds, mfu)
    return Step(metrics, int(stop) and (signals.number or signal.SIGTERM))


def _accumulate_gradients(
    config: TrainConfig,
    accelerator: Accelerator,
    state: TrainingState,
    blocks: torch.Tensor,
    after_micro_batch: Callable[[int, int], None],
) -> torch.Tensor:
    """Add up the gradients of the micro-batches, and return this process's share of the mean loss (float32 scalar)."""
    predicted = config.batch_size * (config.block_size - 1)
    parts = torch.split(blocks, config.micro_batch_size)
    total = torch.zeros((), device=accelerator.device)
    for number, part in enumerate(parts, 1):
        with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(state.model):
            loss = state.model(part.to(accelerator.device)) / predicted
            accelerator.backward(loss * accelerator.num_processes)  # accelerate averages gradients over processes
        total += loss.detach()
        after_micro_batch(number, len(parts))
    return total
