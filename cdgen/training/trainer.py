"""Training from scratch, in one or several processes.

The batch, learning rate and dropout of a step follow from its number, so a run can resume at any step.
"""

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from transformers import PreTrainedModel

from cdgen.environment import versions
from cdgen.errors import InputError, first_line
from cdgen.hardware import tf32_products
from cdgen.rng import private_noise
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder
from cdgen.storage.progress import Progress, displayed
from cdgen.training import checkpoints, corpora
from cdgen.training.config import TrainConfig
from cdgen.training.data import Inputs, TrainingData, find_inputs, open_data
from cdgen.training.evaluation import evaluate
from cdgen.training.logs import check_tensorboard
from cdgen.training.mixture import check_world
from cdgen.training.model import build, peak_operations
from cdgen.training.recorder import Recorder
from cdgen.training.result import TrainingRun
from cdgen.training.signals import Interrupted, Signals
from cdgen.training.state import TrainingState, prepare
from cdgen.training.step import train_step

log = logging.getLogger("cdgen")


def train(config: TrainConfig, progress: Progress | bool | None = None) -> TrainingRun:
    """Train a model from scratch, or resume an unfinished run of the same config in `config.out`.

    The folder gets `run.json`, `log.jsonl` and a folder `step_NNNNNN` for each checkpoint, which transformers can load.
    The defaults of the config are the settings of Ulm, Du and Snaebjarnarson (arXiv 2510.08245). All processes that
    accelerate or torchrun started call this function with the same config.

    Args:
        config: all settings of the run.
        progress: True shows a progress bar, as in :meth:`cdgen.ContrastiveLM.generate`; or a display of your own. Only
            the first of several processes shows it.
    Returns:
        The training run: its checkpoints with their training losses and perplexities, and which of them is the best.
    Raises:
        InputError: a setting is impossible, or differs from the one that the run was started with; the message names
            the field. Also raised if a loss, the gradient or a weight is not finite; the checkpoints before are kept.
        CorpusError: the folder cannot be written, or a corpus, run.json or a checkpoint is damaged.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, even if the last step is finished; the step at which training
            stopped was saved. A second signal stops training at once, and the run resumes from the last checkpoint.
    """
    if not isinstance(config, TrainConfig):
        raise InputError(f"config: is of type {type(config).__name__}; use TrainConfig(...)")
    requested = config.dtype
    config, accelerator = _accelerator(config)
    first, device = accelerator.is_main_process, accelerator.device
    if first and requested is None and config.dtype == "bfloat16":
        log.warning("matrix products in bfloat16, weights in float32; use dtype='float32' for float32 products")
    assert config.warmup_steps is not None, "TrainConfig has set it"
    if first and config.warmup_steps > config.steps:
        log.warning(
            "warmup_steps = %d: is more than steps = %d, so the learning rate never reaches %g",
            *(config.warmup_steps, config.steps, config.learning_rate),
        )
    output = OutputFolder(config.out) if first else contextlib.nullcontext()
    with (
        private_noise(device),
        tf32_products(device),
        output as folder,
        displayed(progress if first else None) as display,
    ):
        return TrainingRun.of(config.out, _train(config, accelerator, folder, display))


def _accelerator(config: TrainConfig) -> tuple[TrainConfig, Accelerator]:
    """Return accelerate's view of the devices and processes, and the config with the dtype that is used there.

    Raises:
        InputError: the launcher or an environment variable asks for something that is not possible.
    """
    # Forget the state of an earlier run in this process, but keep its process group, if there is one.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    cpu = not torch.accelerator.is_available()  # without this, CPU processes of torchrun do not find each other
    try:
        if config.dtype is None:
            on_cuda = PartialState(cpu=cpu).device.type == "cuda"
            config = replace(config, dtype="bfloat16" if on_cuda else "float32")
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="bf16" if config.dtype == "bfloat16" else "no",
            dynamo_backend="inductor" if config.compile else "no",
        )
    except Exception as error:  # accelerate has no exception of its own
        raise InputError(
            f"accelerate cannot start: {first_line(error)}; check the launcher, and environment variables such as "
            "RANK, WORLD_SIZE and ACCELERATE_..."
        ) from error
    return config, accelerator


def _train(config: TrainConfig, accelerator: Accelerator, folder: OutputFolder | None, progress: Progress) -> runs.Run:
    """Train in the run's folder, which only the first process has."""
    check_world(config.batch_size, accelerator.num_processes)
    if config.tensorboard:
        check_tensorboard()
    tokenizer = corpora.load_tokenizer(config.tokenizer)
    lm = build(config, tokenizer.module)
    if accelerator.is_main_process:
        _warn_of_untrained_positions(config, lm)
    inputs = find_inputs(config, tokenizer)
    run = _open_run(config, accelerator, inputs)
    state = prepare(config, accelerator, lm, run)
    data = open_data(config, inputs, progress)  # last, since it may tokenise for minutes
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    peak = peak_operations(accelerator.device, dtype) if folder is not None else None
    accelerator.wait_for_everyone()  # every process has read run.json before the first one writes it
    with contextlib.ExitStack() as stack:
        recorder = None
        if folder is not None:
            recorder = Recorder(config, folder, run, tokenizer.module, progress, state.step)
            stack.callback(recorder.close)
        signals = stack.enter_context(Signals(acknowledge=folder is not None))
        _loop(config, accelerator, data, state, peak, signals, recorder)
        if signals.number:  # it arrived while the last checkpoint was evaluated or saved
            raise Interrupted(signals.number, _saved(state))
    finished = runs.read(config.out)
    assert finished is not None, "the first process has written it"
    return finished


def _warn_of_untrained_positions(config: TrainConfig, lm: PreTrainedModel) -> None:
    positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    if positions and positions > config.block_size:
        log.warning(
            "model = %r: has %d positions, but blocks have %d tokens, so later positions are never trained; set "
            "max_position_embeddings = %d in its config.json",
            *(config.model, positions, config.block_size, config.block_size),
        )


def _open_run(config: TrainConfig, accelerator: Accelerator, inputs: Inputs) -> runs.Run:
    """Return the content of run.json, with this process's environment added to it."""
    run = runs.begin(Path(config.out), config.as_json(), inputs.fingerprints)
    environment = versions() | {"device": accelerator.device.type, "processes": accelerator.num_processes}
    _, changed = manifests.add_environment(run, environment)
    if changed and accelerator.is_main_process:
        log.warning(
            "%s changed since the run was started; the remaining steps may differ by floating-point rounding",
            ", ".join(changed),
        )
    return run


def _loop(
    config: TrainConfig,
    accelerator: Accelerator,
    data: TrainingData,
    state: TrainingState,
    peak: float | None,
    signals: Signals,
    recorder: Recorder | None,
) -> None:
    """Train up to the last step, with a checkpoint every `save_every` steps and after a signal."""
    after_micro_batch = recorder.show_micro_batch if recorder else _show_nothing
    after_evaluating = recorder.show_evaluation if recorder else _show_nothing
    while state.step < config.steps:
        metrics, stop = train_step(config, accelerator, data.mixture, state, peak, signals, after_micro_batch)
        if recorder:
            recorder.record_step(state.step, metrics)
        due = state.step % config.save_every == 0 or state.step == config.steps
        if due or stop:
            test_loss = None
            if due and data.test is not None:
                blocks, micro_batch_size = config.eval_blocks, config.micro_batch_size
                test_loss = evaluate(accelerator, state.model, data.test, blocks, micro_batch_size, after_evaluating)
            snapshot = checkpoints.gather(state.model, state.optimizer.optimizer)
            if recorder:
                recorder.save(state, snapshot, metrics.loss, test_loss)
            accelerator.wait_for_everyone()
        if stop:
            raise Interrupted(stop, _saved(state))


def _saved(state: TrainingState) -> str:
    """Return which step an interrupted run has saved, for a message."""
    return f"saved as step {state.step}"


def _show_nothing(finished: int, total: int) -> None:
    """Show no progress, as in all processes except the first."""
