"""A step of `cdgen train` against one of transformers' Trainer with its plain loss: time and memory, on the CPU.

    python -m pytest benchmarks/cpu/bench_training.py --benchmark-only --benchmark-json=training.json

A Llama of 10 M parameters, embeddings included (6 layers, width 128, 32,000 entries), 8 blocks of 512 tokens a step,
float32, AdamW. Both train on the same blocks from the same weights, whole loops with their data and their logs, each in
a thread of its own that waits while the other has its step. Their losses are compared before any time is reported. Peak
memory is that of a process with one of them alone (ru_maxrss), and what it adds to the process before training.
"""

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from benchmarks.cpu.harness import compare
from cdgen import TrainConfig, train
from cdgen.storage.progress import Progress
from cdgen.training import corpora
from cdgen.training.mixture import Mixture
from cdgen.training.model import build
from cdgen.training.tokens import Pool

VOCAB_SIZE, BLOCK, BATCH, ROUNDS, WARM_UP = 32_000, 512, 8, 7, 2


def write_inputs(folder):
    """A tokenizer whose tokens are words, a text of words as frequent as Zipf has it, and the model's config."""
    vocabulary = {"<s>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder / "tokenizer")
    words, weights = list(vocabulary)[2:], [1 / rank for rank in range(1, VOCAB_SIZE - 1)]
    dice = random.Random(0)
    texts = (" ".join(dice.choices(words, weights, k=300)) for _ in range(BLOCK * BATCH * (ROUNDS + WARM_UP) // 250))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=BLOCK,
        tie_word_embeddings=False,
    ).save_pretrained(folder / "model")


def config_of(folder, steps):
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


def run_cdgen(folder, steps, after_step):
    """Losses of `train`, which calls `after_step` after every step."""

    class Calls(Progress):
        def batch(self, rows):
            after_step()

    train(config_of(folder, steps), Calls())
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    loading = statistics.median(record["loading_seconds"] / record["seconds"] for record in log[WARM_UP:] or log)
    return [record["loss"] for record in log], loading


def run_trainer(folder, steps, after_step):
    """Losses of transformers' Trainer over the same blocks in the same order."""
    config = config_of(folder, steps)
    tokenizer = corpora.load_tokenizer(config.tokenizer)
    pool = Pool([corpora.token_file(corpora.find(config.corpus), tokenizer)], BLOCK, config.seed, "text")
    mixture = Mixture(pool, None, BATCH, 0, config.seed)
    rows = [{"input_ids": row, "labels": row} for step in range(steps) for row in mixture.blocks(step)]

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Calls(TrainerCallback):
        def on_step_end(self, *_, **__):
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
    trainer = InOrder(build(config, tokenizer.module), arguments, train_dataset=rows, callbacks=[Calls()])
    trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record], None


VARIANTS = {"cdgen": run_cdgen, "Trainer": run_trainer}


class Stepwise:
    """A loop in a thread of its own that does one step for every call."""

    def __init__(self, variant, folder, steps):
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(VARIANTS[variant], folder, steps), daemon=True)
        self._thread.start()

    def __call__(self):
        self._turn.release()
        self._done.acquire()

    def result(self):
        self._turn.release()  # to its end
        self._thread.join()
        return self._result

    def _run(self, variant, folder, steps):
        self._turn.acquire()
        self._result = variant(folder, steps, self._after_step)

    def _after_step(self):
        self._done.release()
        self._turn.acquire()


def measure_peak(variant, folder):
    """(greatest resident memory of this process, what training added to it), bytes; run in a process of its own."""
    torch.set_num_threads(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    VARIANTS[variant](Path(folder), 3, lambda: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [1024 * peak, 1024 * (peak - before)]


def peak_memory(variant, folder):
    code = f"from benchmarks.cpu.bench_training import measure_peak; print(measure_peak({variant!r}, {str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_training_step(benchmark, monkeypatch):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        monkeypatch.setenv("CDGEN_CACHE", str(folder / "cache"))
        write_inputs(folder)
        peaks = {}
        for variant in VARIANTS:
            (folder / variant).mkdir()
            write_inputs(folder / variant)
            peaks[variant] = peak_memory(variant, folder / variant)
        steps = ROUNDS + WARM_UP
        loops = {variant: Stepwise(variant, folder, steps) for variant in VARIANTS}
        for loop in loops.values():
            loop()  # imports, tokens, and the first step's allocations
        benchmark.group = f"training step {BATCH} x {BLOCK} tokens, {VOCAB_SIZE} entries, 10 M parameters, float32"
        benchmark.extra_info["threads"] = torch.get_num_threads()
        compare(benchmark, ("cdgen", loops["cdgen"]), {"Trainer": loops["Trainer"]}, rounds=ROUNDS)
        (ours, loading), (theirs, _) = (loop.result() for loop in loops.values())
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=0)
    for variant, (peak, added) in peaks.items():
        benchmark.extra_info[f"{variant}, MB at the peak"] = round(peak / 1e6)
        benchmark.extra_info[f"{variant}, MB added"] = round(added / 1e6)
    for at, kind in enumerate(("at the peak", "added")):
        benchmark.extra_info[f"memory {kind}, cdgen / Trainer"] = round(peaks["cdgen"][at] / peaks["Trainer"][at], 2)
    benchmark.extra_info["loading, share of a step"] = round(loading, 5)
