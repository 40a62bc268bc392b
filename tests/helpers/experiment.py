"""A recipe with tiny models, and the folder of its finished experiment."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from tests.helpers.tiny_models import SENTENCES

_RECIPE = """
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
_EVALUATION = """
[evaluate]
tasks = ["entity_tracking", "perplexity"]
limit = 40
"""


def write_recipe(folder: Path, model: LlamaForCausalLM) -> Path:
    """Write a text, the config of a model, and a recipe that reads both; return the path of the recipe."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"{number}. {SENTENCES[number % 3]}" for number in range(80)))
    model.config.save_pretrained(folder / "model")
    path = folder / "recipe.toml"
    path.write_text(_RECIPE.replace("TEXT", str(text)).replace("CONFIG", str(folder / "model")))
    return path


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory, bad: LlamaForCausalLM, cdgen_command: Any) -> Path:
    """Return the folder of a finished experiment: corpora, training runs, evaluation and comparison. Do not change it.

    The stages are corpus, tokenizer, good, corpus-ancestral, corpus-contrastive, model-ancestral, model-contrastive,
    evaluation and comparison.
    """
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("experiment")
    recipe = write_recipe(folder, bad)
    recipe.write_text(recipe.read_text() + "split_documents = true\n" + _EVALUATION)
    code, printed = cdgen_command("run", recipe, "--out", folder / "run", CDGEN_CACHE=str(folder / "cache"))
    assert code == 0, printed
    return folder / "run"
