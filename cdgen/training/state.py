"""What training changes: the model, the optimizer, the learning-rate schedule, and the number of finished steps."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import AutoModelForCausalLM, PreTrainedModel, get_cosine_schedule_with_warmup

from cdgen.models.files import Located, weight_files
from cdgen.models.quiet import quiet_transformers
from cdgen.storage.runs import Run
from cdgen.training import checkpoints
from cdgen.training.config import TrainConfig
from cdgen.training.model import SummedLoss, operations_per_token, parameter_groups, use_liger


@dataclass
class TrainingState:
    """Model, optimizer and schedule after `step` steps.

    Attributes:
        lm: the language model.
        model: the :class:`~cdgen.training.model.SummedLoss` of `lm`, as accelerate prepared it.
        optimizer: AdamW, as accelerate prepared it.
        schedule: linear warm-up, then a cosine down to 0.
        operations: floating-point operations per token of a step.
        step: number of finished steps.
    """

    lm: PreTrainedModel
    model: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: LRScheduler
    operations: int
    step: int


def prepare(config: TrainConfig, accelerator: Accelerator, lm: PreTrainedModel, run: Run) -> TrainingState:
    """Prepare training from a run's last checkpoint, or from the weights of `lm` if there is none.

    Raises:
        CorpusError: the last checkpoint is damaged.
    """
    step, last = 0, None
    if run["checkpoints"]:
        step, last = run["checkpoints"][-1]["step"], checkpoints.load_last(Path(config.out), run)
        weight_files(last.folder, Located(last.folder))  # raises if an index names files outside the checkpoint
        with quiet_transformers():
            lm = AutoModelForCausalLM.from_pretrained(
                last.folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    lm.train()
    if accelerator.device.type == "cuda" and not config.compile:
        use_liger(lm)
    operations = operations_per_token(lm, config.block_size)  # counted before the model may be sharded
    plain = torch.optim.AdamW(parameter_groups(lm, config.weight_decay), lr=config.learning_rate, fused=True)
    model, optimizer = accelerator.prepare(SummedLoss(lm), plain)
    plain = optimizer.optimizer
    if last is not None:
        checkpoints.restore(model, plain, last.moments)
    for group in plain.param_groups:
        group["initial_lr"] = config.learning_rate  # the schedule's peak; a restored group holds the current rate
    schedule = get_cosine_schedule_with_warmup(plain, config.warmup_steps or 0, config.steps, last_epoch=step - 1)
    return TrainingState(lm, model, optimizer, schedule, operations, step)
