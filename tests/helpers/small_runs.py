"""Training runs that take a second or two: their corpora, tokenizer and settings, and an uninterrupted run."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from cdgen import TrainConfig, train
from tests.helpers.tiny_models import SENTENCES, VOCABULARY, make_tokenizer

BLOCK, BATCH, STEPS, EVERY = 32, 8, 200, 40


def documents(count: int, seed: int) -> list[str]:
    """Return documents of 1 to 6 random sentences."""
    dice = random.Random(seed)
    return [" ".join(dice.choices(SENTENCES, k=dice.randint(1, 6))) for _ in range(count)]


def write_parquet(path: Path, texts: list[str]) -> None:
    """Write texts as a split of a prepared corpus."""
    table = {"id": list(map(str, range(len(texts)))), "source": ["a"] * len(texts), "text": texts}
    pq.write_table(pa.table(table), path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with a tokenizer, a prepared corpus, synthetic text, a 2-layer config, and the cache of tokens."""
    folder = tmp_path_factory.mktemp("data")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "real").mkdir()
    write_parquet(folder / "real" / "train.parquet", documents(120, 0))
    write_parquet(folder / "real" / "test.parquet", documents(20, 1))
    (folder / "synthetic.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(20, 2)))
    write_config(folder / "shape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDGEN_CACHE", str(folder / "cache"))
        patch.setenv("ACCELERATE_USE_CPU", "true")  # also on machines with a GPU
        yield folder


def write_config(folder: Path, **changes: Any) -> None:
    """Write the config of a Llama with 2 layers."""
    config = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": BLOCK, "tie_word_embeddings": False,
    }  # fmt: skip
    LlamaConfig(**config | changes).save_pretrained(folder)


@pytest.fixture(scope="module")
def settings(data: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that returns the arguments of TrainConfig for a run in the folder `out`."""

    def make(out: Path, **changes: Any) -> dict[str, Any]:
        values = {
            "corpus": data / "real", "tokenizer": data / "tokenizer", "synthetic": [str(data / "synthetic.jsonl")],
            "model": data / "shape", "batch_size": BATCH, "micro_batch_size": 4, "block_size": BLOCK, "steps": STEPS,
            "warmup_steps": 15, "save_every": EVERY, "out": out,
        } | changes  # fmt: skip
        return {name: value if isinstance(value, (int, float, list)) else str(value) for name, value in values.items()}

    return make


def command(settings: dict[str, Any]) -> list[Any]:
    """Return the `cdgen train` command with these arguments of TrainConfig."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    return [
        "train",
        *(x for flag, value in flags.items() for x in (flag, *(value if value.__class__ is list else [value]))),
    ]


@pytest.fixture(scope="module")
def uninterrupted(settings: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run that was never interrupted."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(TrainConfig(**settings(out)))
    return out


def log_of(out: Path) -> list[dict[str, Any]]:
    """Return the records in the log of a run."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_run(out: Path, uninterrupted: Path) -> None:
    """Assert bit-identical weights and optimizer states, and logs with the same losses."""
    for name in ("model.safetensors", "state.safetensors"):
        found, due = (load_file(run / f"step_{STEPS:06d}" / name) for run in (out, uninterrupted))
        assert found.keys() == due.keys()
        assert [name for name in due if not torch.equal(found[name], due[name])] == []
    numbers = [[(r["step"], r.get("loss"), r.get("test_loss")) for r in log_of(run)] for run in (out, uninterrupted)]
    assert numbers[0] == numbers[1]
