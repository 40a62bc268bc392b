"""The recipe of a whole experiment with tiny models."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_models import SENTENCES

RECIPE = """
[prepare]
sources = ["TEXT,by=blank"]
test = 0.2
seeds = 0.2
[tokenizer]
vocab_size = 300
[train]
model = "CONFIG"
block_size = 32
batch_size = 8
steps = 6
warmup_steps = 1
save_every = 3
[bad]
step = 3
[generate]
n = 2
max_tokens = 8
prefix_tokens = 5
ignore_eos = true
"""


@pytest.fixture
def recipe(tmp_path: Path, bad: Any) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{number}. {SENTENCES[number % 3]}" for number in range(80)))
    bad.config.save_pretrained(tmp_path / "model")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("TEXT", str(text)).replace("CONFIG", str(tmp_path / "model")))
    return path
