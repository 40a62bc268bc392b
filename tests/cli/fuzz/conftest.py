"""A small model, prompts and a text, for commands with hostile input."""

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bad: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Return a folder with a small model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    bad.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "seeds.txt"
    path.write_text("The quick brown fox\nOnce upon\n")
    return path


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    """Return a text, the config of a model, and a tokenizer."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "text.txt").write_text("\n".join(f"{number} foxes jump over {number} dogs." for number in range(60)))
    return {"--corpus": folder / "text.txt", "--tokenizer": model, "--model": model}
