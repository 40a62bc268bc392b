"""Time and memory of a step of `cdgen train` on the CPU, compared with transformers' Trainer and its plain loss.

    python -m pytest benchmarks/cpu/bench_training.py --benchmark-only --benchmark-json=training.json

A Llama of 10 M parameters, embeddings included (6 layers, width 128, 32,000 vocabulary entries), 8 blocks of 512 tokens
per step, float32, AdamW. Both train on the same blocks from the same weights. Both run whole loops, including data and
logs, each in a thread that waits while the other makes its step. Their losses are compared at the end of the run. Peak
memory (ru_maxrss), and the part of it that training added, are measured in processes that run one of them alone.
"""

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from benchmarks.cpu.harness import compare
from cdgen import TrainConfig, train
from cdgen.corpus.find import find
from cdgen.storage.progress import Silent
from cdgen.training import corpora
from cdgen.training.mixture import Mixture
from cdgen.training.model import build
from cdgen.training.tokens import Pool

VOCAB_SIZE, BLOCK, BATCH, ROUNDS, WARM_UP = 32_000, 512, 8, 7, 2


def write_inputs(folder: Path) -> None:
    """Write a tokenizer with one token per word, a text of words with Zipf's frequencies, and the model's config."""
    vocabulary = {"<s>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens).save_pretrained(folder / "tokenizer")
    words, weights = list(vocabulary)[2:], [1 / rank for rank in range(1, VOCAB_SIZE - 1)]
    dice = random.Random(0)
    texts = (" ".join(dice.choices(words, weights, k=300)) for _ in range(BLOCK * BATCH * (ROUNDS + WARM_UP) // 250))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.jsonl").write_text(lines, encoding="utf-8")
    LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=BLOCK,
        tie_word_embeddings=False,
    ).save_pretrained(folder / "model")


def config_of(folder: Path, steps: int) -> TrainConfig:
    return TrainConfig(
        corpus=str(folder / "text.jsonl"),
        tokenizer=str(folder / "tokenizer"),
        model=str(folder / "model"),
        out=str(folder / "run"),
        batch_size=BATCH,
        micro_batch_size=BATCH,
        block_size=BLOCK,
        steps=steps,
        warmup_steps=2,
        save_every=steps + 1,
    )


class Trained(NamedTuple):
    """The result of a loop."""

    losses: list[float]  # one per step
    loading: float | None = None  # share of a step's time spent on loading data, if it is known


def run_cdgen(folder: Path, steps: int, after_step: Callable[[], None]) -> Trained:
    """Run cdgen's `train`, and call `after_step` after every step."""

    class Calls(Silent):
        def advance(self, units: int) -> None:
            after_step()

    train(config_of(folder, steps), Calls())
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    loading = statistics.median(record["loading_seconds"] / record["seconds"] for record in log[WARM_UP:] or log)
    return Trained([record["loss"] for record in log], loading)


def run_trainer(folder: Path, steps: int, after_step: Callable[[], None]) -> Trained:
    """Run transformers' Trainer on the same blocks in the same order, and call `after_step` after every step."""
    config = config_of(folder, steps)
    tokenizer = corpora.load_tokenizer(config.tokenizer)
    pool = Pool([corpora.token_file(find(config.corpus), tokenizer)], BLOCK, config.seed, "text")
    mixture = Mixture(pool, None, BATCH, 0, config.seed)
    rows = [{"input_ids": row, "labels": row} for step in range(steps) for row in mixture.blocks(step)]

    class SequentialTrainer(Trainer):
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Calls(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            after_step()

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type="cosine",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SequentialTrainer(build(config, tokenizer.module), arguments, train_dataset=rows, callbacks=[Calls()])
    trainer.train()
    return Trained([record["loss"] for record in trainer.state.log_history if "loss" in record])


VARIANTS = {"cdgen": run_cdgen, "Trainer": run_trainer}


class Stepwise:
    """A training loop in a thread of its own that makes one step per call. A call raises the loop's error, if any."""

    def __init__(self, variant: str, folder: Path, steps: int) -> None:
        self._result: Trained | None = None
        self._error: BaseException | None = None
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(variant, folder, steps), daemon=True)
        self._thread.start()

    def __call__(self) -> None:
        self._turn.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def result(self) -> Trained:
        """Let the loop finish, and return its result."""
        self._turn.release()
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _run(self, variant: str, folder: Path, steps: int) -> None:
        self._turn.acquire()
        try:
            self._result = VARIANTS[variant](folder, steps, self._after_step)
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()  # otherwise a call that waits for the next step waits forever

    def _after_step(self) -> None:
        self._done.release()
        self._turn.acquire()


class Memory(NamedTuple):
    """Resident memory of a process that trains, in bytes."""

    peak: int
    added: int  # increase during training


def measure_peak(variant: str, folder: str) -> Memory:
    """Train for 3 steps and return the memory of this process. Run it in a process of its own."""
    torch.set_num_threads(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    VARIANTS[variant](Path(folder), 3, lambda: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(1024 * peak, 1024 * (peak - before))


def peak_memory(variant: str, folder: Path) -> Memory:
    """Return :func:`measure_peak` of a new process."""
    code = f"from benchmarks.cpu.bench_training import measure_peak; print(*measure_peak({variant!r}, {str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, added = map(int, done.stdout.splitlines()[-1].split())
    return Memory(peak, added)


def report_memory(benchmark: BenchmarkFixture, memory: dict[str, Memory]) -> None:
    for variant, used in memory.items():
        benchmark.extra_info[f"{variant}, peak MB"] = round(used.peak / 1e6)
        benchmark.extra_info[f"{variant}, added MB"] = round(used.added / 1e6)
    own, rival = memory["cdgen"], memory["Trainer"]
    benchmark.extra_info["peak memory, cdgen / Trainer"] = round(own.peak / rival.peak, 2)
    benchmark.extra_info["added memory, cdgen / Trainer"] = round(own.added / rival.added, 2)


def test_training_step(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        monkeypatch.setenv("CDGEN_CACHE", str(folder / "cache"))
        write_inputs(folder)
        memory = {}
        for variant in VARIANTS:
            (folder / variant).mkdir()
            write_inputs(folder / variant)
            memory[variant] = peak_memory(variant, folder / variant)
        loops = {variant: Stepwise(variant, folder, ROUNDS + WARM_UP) for variant in VARIANTS}
        for loop in loops.values():
            loop()  # includes imports, tokenization and the first step's allocations
        benchmark.group = f"training step {BATCH} x {BLOCK} tokens, {VOCAB_SIZE} entries, 10 M parameters, float32"
        benchmark.extra_info["threads"] = torch.get_num_threads()
        compare(benchmark, ("cdgen", loops["cdgen"]), {"Trainer": loops["Trainer"]}, rounds=ROUNDS)
        own, rival = (loop.result() for loop in loops.values())
    torch.testing.assert_close(torch.tensor(own.losses), torch.tensor(rival.losses), rtol=1e-4, atol=0)
    report_memory(benchmark, memory)
    benchmark.extra_info["loading, share of a step"] = round(own.loading or 0, 5)
