"""train(): one step after another, as a function of the step's number, on as many processes as accelerate started."""

import contextlib
import logging
import math
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from cdgen.environment import versions
from cdgen.errors import CorpusError, InputError
from cdgen.hardware import tf32_products
from cdgen.models.quiet import quiet_transformers
from cdgen.rng import private_noise
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder, file_sha256
from cdgen.storage.progress import Progress
from cdgen.training import checkpoints, corpora
from cdgen.training.config import PRESETS
from cdgen.training.logs import Log
from cdgen.training.mixture import Mixture
from cdgen.training.model import (
    SummedLoss,
    build,
    operations_per_token,
    parameter_groups,
    peak_operations,
    use_liger,
)
from cdgen.training.signals import Interrupted, Signals
from cdgen.training.tokens import Pool

log = logging.getLogger("cdgen")

_REAL, _SYNTHETIC, _NOISE = 0, 1, 3  # streams of random numbers; the mixture has 2
_TEST_SEED = 0  # the test text is cut into the same blocks in every run
_CLIP = 1.0  # the gradient's greatest norm, as in transformers' Trainer


def train(config, progress=None):
    """Train a model from scratch, or go on where an earlier run of the same config stopped.

    Args:
        config: :class:`TrainConfig`. progress: :class:`~cdgen.storage.progress.Progress`.
    Returns:
        the content of run.json: config, inputs' fingerprints, and the checkpoints with their losses and perplexities
    Raises:
        InputError: what was asked for cannot be done; the message names the field. CorpusError: the run's folder cannot
            be written, or holds what cannot be trusted. KeyboardInterrupt: Ctrl-C or SIGTERM; the step is saved.
    """
    AcceleratorState._reset_state()  # of a run before this one in the same process; as transformers' Trainer does
    cpu = not torch.accelerator.is_available()  # otherwise torchrun's CPU processes do not find each other
    asked = config.dtype
    if asked is None:
        on_cuda = PartialState(cpu=cpu).device.type == "cuda"
        config = replace(config, dtype="bfloat16" if on_cuda else "float32")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if config.dtype == "bfloat16" else "no",
        dynamo_backend="inductor" if config.compile else "no",
    )
    first, device = accelerator.is_main_process, accelerator.device
    if first and asked is None and config.dtype == "bfloat16":
        log.warning("matrix products in bfloat16, weights in float32; --dtype float32 for float32 products")
    output = OutputFolder(config.out) if first else contextlib.nullcontext()
    with private_noise(device), tf32_products(device), output as folder:
        return _Run(config, accelerator, folder, progress if first and progress else Progress()).train()


class _Run:
    def __init__(self, config, accelerator, folder, progress):
        self.config, self.accelerator, self.folder, self.progress = config, accelerator, folder, progress
        self.rank, self.world, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device
        tokenizer = corpora.load_tokenizer(config.tokenizer)
        self.tokenizer = tokenizer.module
        fresh = build(config, self.tokenizer)
        inputs = self._open_data(tokenizer)
        self.run = _begin(Path(config.out), config, inputs)
        _, changed = manifests.add_run(self.run, versions() | {"device": self.device.type, "processes": self.world})
        if changed and accelerator.is_main_process:
            log.warning("%s changed since this run was begun; steps to come may round otherwise", ", ".join(changed))
        self.step, state = 0, None
        if self.run["checkpoints"]:
            path, state = checkpoints.checked(Path(config.out), self.run)
            self.step = self.run["checkpoints"][-1]["step"]
            with quiet_transformers():
                fresh = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        self._prepare(fresh, state)
        accelerator.wait_for_everyone()  # all have read run.json before the first process writes it

    def _open_data(self, tokenizer):
        """Pools and mixture; returns fingerprints by field."""
        config = self.config
        names = {
            "corpus": [config.corpus] if config.ratio < 1 else [],
            "synthetic": config.synthetic if config.ratio else (),
        }
        found = {field: [corpora.find(name) for name in of] for field, of in names.items()}
        beside = Path(config.corpus).expanduser() / "test.parquet"
        test = config.test or (beside if beside.exists() else None)
        found["test"] = [corpora.find(test, "test")] if test else []

        def pool(field, seed, stream):
            files = [corpora.token_file(corpus, tokenizer) for corpus in found[field]]
            names = ", ".join(corpus.name for corpus in found[field])
            return Pool(files, config.block_size, seed, f"{field} {names}", stream) if files else None

        self.mixture = Mixture(
            pool("corpus", config.seed, _REAL),
            pool("synthetic", config.seed, _SYNTHETIC),
            config.batch_size,
            config.ratio,
            config.seed,
        )
        self.mixture.check_world(self.world)
        self.test = pool("test", _TEST_SEED, _REAL)
        marks = {field: [corpus.fingerprint for corpus in of] for field, of in found.items()}
        return marks | {"tokenizer": tokenizer.fingerprint, "model": _model_fingerprint(config.model)}

    def _prepare(self, lm, state):
        """Model, optimiser and schedule, on their devices and at their step."""
        config = self.config
        lm.train()
        if self.device.type == "cuda" and not config.compile:
            use_liger(lm)
        self.lm, self.operations = lm, operations_per_token(lm, config.block_size)
        optimizer = torch.optim.AdamW(parameter_groups(lm, config.weight_decay), lr=config.learning_rate, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(SummedLoss(lm), optimizer)
        plain = self.optimizer.optimizer
        if state is not None:
            checkpoints.restore(self.model, plain, state)
        for group in plain.param_groups:
            group["initial_lr"] = config.learning_rate
        self.schedule = get_cosine_schedule_with_warmup(
            plain, config.warmup_steps, config.steps, last_epoch=self.step - 1
        )
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self.peak = peak_operations(self.device, dtype) if self.accelerator.is_main_process else None

    def train(self):
        config, first = self.config, self.accelerator.is_main_process
        self.progress.begin(config.steps, self.step)
        journal = Log(self.folder, self.step, config.tensorboard) if first else None
        if first:
            checkpoints.write_run(self.folder, self.run)
        signals = Signals()
        try:
            with signals:
                while self.step < config.steps:
                    values, stop = self._one_step(signals)
                    if first:
                        journal.write(self.step, **values)
                    if self.step % config.save_every == 0 or self.step == config.steps:
                        self._checkpoint(values["loss"], journal, self.evaluate())
                    elif stop:
                        self._checkpoint(values["loss"], journal, None)
                    if stop and self.step < config.steps:
                        raise Interrupted(stop, self.step)
        finally:
            if first:
                journal.close()
        return runs.read_run(config.out)

    def _one_step(self, signals):
        """Train on the step's batch; returns what the log says of it, and the signal that came, on any process."""
        config, accelerator = self.config, self.accelerator
        start = time.perf_counter()
        key = np.random.SeedSequence((config.seed, _NOISE, self.step, self.rank))  # of dropout, where the model has it
        torch.manual_seed(int(key.generate_state(1)[0]))
        blocks = torch.from_numpy(self.mixture.blocks(self.step, self.rank, self.world))
        loading = time.perf_counter() - start
        predicted = config.batch_size * (config.block_size - 1)
        parts, total = blocks.split(config.micro_batch_size), torch.zeros(2, device=self.device)
        for number, part in enumerate(parts, 1):
            with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(self.model):
                loss = self.model(part.to(self.device)) / predicted
                accelerator.backward(loss * self.world)  # processes' gradients are averaged
            total[0] += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), _CLIP)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        total[1] = signals.number
        loss, stop = accelerator.reduce(total).tolist()
        if not math.isfinite(loss):
            raise InputError(f"step {self.step}: the loss is {loss}; lower learning_rate, or train in float32")
        seconds = time.perf_counter() - start
        tokens = config.batch_size * config.block_size
        used = self.peak and self.operations * tokens / (seconds * self.peak * self.world)
        self.progress.about(f"loss {loss:.3f}" + (f", {used:.0%} of the peak" if used else ""))
        self.progress.tokens(tokens)
        self.progress.batch(1)
        values = {"loss": loss, "learning_rate": rate, "gradient_norm": float(norm)}
        speed = {"seconds": seconds, "loading_seconds": loading, "tokens_per_second": tokens / seconds, "mfu": used}
        return values | speed, int(stop) and (signals.number or signal.SIGTERM)

    def evaluate(self):
        """Mean loss of a token over the test text's blocks, or None without one."""
        if self.test is None:
            return None
        config = self.config
        count = min(config.eval_blocks or self.test.blocks, self.test.blocks)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        size = config.micro_batch_size
        self.model.eval()
        with torch.no_grad():
            for start in range(0, count, size * self.world):
                own = range(start + self.rank, min(start + size * self.world, count), self.world)
                # a process without blocks of its own runs along: sharded models wait for each other
                blocks = torch.from_numpy(np.stack([self.test.block(number) for number in own or [0]]))
                loss = self.model(blocks.to(self.device))
                total += loss if own else 0
        self.model.train()
        return self.accelerator.reduce(total).item() / (count * (config.block_size - 1))

    def _checkpoint(self, loss, journal, test_loss):
        weights, state = checkpoints.gather(self.model, self.optimizer.optimizer)
        if self.accelerator.is_main_process:
            perplexity = None if test_loss is None else math.exp(test_loss)
            if perplexity is not None:
                journal.write(self.step, test_loss=test_loss, perplexity=perplexity)
            entry = {"step": self.step, "loss": loss, "perplexity": perplexity}
            last = self.run["checkpoints"][-1:]
            config = self.config
            with quiet_transformers():
                checkpoints.save(
                    self.folder, self.run, entry, self.lm, self.tokenizer, weights, state, config.keep_states
                )
            for old in last:
                if old["step"] % config.save_every:  # an interruption left it
                    checkpoints.drop(self.folder, self.run, old)
            rated = "" if perplexity is None else f", perplexity {perplexity:.3f}"
            self.progress.note(f"{runs.checkpoint_name(self.step)}: loss {loss:.4f}{rated}")
        self.accelerator.wait_for_everyone()


def _model_fingerprint(name):
    """Of a preset its name, else sha256 of the config file."""
    path = Path(name).expanduser()
    return name if name in PRESETS else file_sha256(path / "config.json" if path.is_dir() else path)


def _begin(folder, config, inputs):
    """The content of run.json to go on with, of which a checkpoint whose folder is gone is left out; or a new one."""
    new = {"config": config.as_json(), "inputs": inputs, "runs": [], "checkpoints": []}
    run = runs.read_run(folder)
    if run is None:
        if present := sorted(folder.glob("step_*")):
            raise CorpusError(f"{folder}: holds {present[0].name} but no {runs.NAME}; choose another folder")
        return new
    for name, now in new["config"].items():
        before = run["config"].get(name)
        if name in inputs and run["inputs"].get(name) == inputs[name]:
            continue  # the same text in another place
        if before != now:
            raise InputError(
                f"{folder}: was begun with {name} = {before}, this run has {name} = {now}; "
                "use the same, or another folder"
            )
        if name in inputs:
            raise InputError(f"{folder}: what {name} = {now} holds has changed since; use the same, or another folder")
    return run
