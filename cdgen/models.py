"""Loading a language model from a folder, a hub name or a GGUF file."""

import contextlib
import hashlib
import inspect
import io
import json
import logging
import platform
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from cdgen import __version__
from cdgen.cache import InPlaceCache
from cdgen.errors import InputError
from cdgen.folder import file_sha256
from cdgen.hardware import free_memory, free_memory_text
from cdgen.runs import resolve

log = logging.getLogger("cdgen")

_ATTENTION = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "moe",
    "mlp",
}  # layer types the cache can hold
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass
class LanguageModel:
    """A causal language model, ready to decode.

    `name` is what the user called it. `files` are what its fingerprint is taken of; empty for a model that was handed
    over already loaded. `rule` names what was done to GOOD to make this BAD, where it was, and `parent` is that GOOD.
    """

    module: PreTrainedModel
    name: str
    files: tuple[Path, ...] = ()
    rule: str = ""
    parent: "LanguageModel | None" = None
    dropout: float = 0.0  # of attention weights while it decodes
    width: int = field(init=False)  # of its logits, padding included

    def __post_init__(self):
        config = self.module.config
        kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
        if config.is_encoder_decoder:
            raise InputError(f"{self.name}: {config.model_type} is an encoder-decoder; give a decoder-only model")
        if getattr(self.module, "_is_stateful", False) or kinds - _ATTENTION:
            raise InputError(
                f"{self.name}: {config.model_type} keeps a state instead of attention's keys and values; not supported"
            )
        self._accepts = frozenset(inspect.signature(self.module.forward).parameters)
        self.width = self._probe()

    @property
    def device(self):
        return self.module.device

    @property
    def noisy(self):
        """Whether its forward pass draws random numbers."""
        return self.dropout > 0

    @property
    def num_layers(self):
        return self.module.config.get_text_config().num_hidden_layers

    @property
    def position_limit(self):
        """Positions the model was made for, or None where it does not say."""
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None)

    @property
    def eos_token_ids(self):
        """Every id that the model's configs call end of text."""
        found = set()
        for config in (self.module.config.get_text_config(), self.module.config, self.module.generation_config):
            ids = getattr(config, "eos_token_id", None)
            found |= set(ids) if isinstance(ids, (list, tuple)) else set() if ids is None else {ids}
        return found

    @cached_property
    def fingerprint(self):
        """sha256 over config and weights; for a BAD made of GOOD, GOOD's fingerprint and the rule."""
        if self.parent is not None:
            return f"{self.parent.fingerprint}+{self.rule}"
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(file_sha256(path).encode())
        if not self.files:
            digest.update(json.dumps(self.module.config.to_dict(), sort_keys=True, default=str).encode())
            for name, tensor in sorted(self.module.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return f"sha256:{digest.hexdigest()}"

    def new_cache(self, max_len):
        return InPlaceCache(self.num_layers, max_len)

    def last_logits(self, ids, attention_mask, position_ids, cache):
        """One forward pass; logits of the last position only.

        Args:
            ids, position_ids: int64 [B, T]. attention_mask: int64 [B, length so far + T], 0 at padding.
            cache: :class:`InPlaceCache`, extended by T positions.
        Returns:
            float [B, width]
        """
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "past_key_values": cache, "use_cache": True}
        if "position_ids" in self._accepts:  # models with ALiBi count positions from the mask
            inputs["position_ids"] = position_ids
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = 1
        return self.module(**inputs).logits[:, -1]

    def _probe(self):
        """Width of the logits, seen in one pass over one token, which also shows that the cache is used."""
        one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        cache = self.new_cache(1)
        with torch.inference_mode(), private_noise(self.device):
            width = self.last_logits(one, one + 1, one, cache).shape[-1]
        if cache.get_seq_length() != 1:
            kind = self.module.config.model_type
            raise InputError(f"{self.name}: {kind} does not keep its attention in transformers' cache; not supported")
        return width


def private_noise(device):
    """A context that puts the generators of the CPU and of `device` back as the user had them."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_noise(device, seed):
    """Seed the generator that dropout on `device` draws from, and no other device's, as torch.manual_seed would."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    generator.manual_seed(seed)


def _device(name):
    """A torch device that can be used; the default is cuda where there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # names that torch does not know, or has no device for
        raise InputError(f"device = {str(name)!r}: cannot be used here: {_first_line(error)}") from error
    return device


def load(source, *, dtype=None, device=None, trust_remote_code=False):
    """Load a model and, where there is one, its tokenizer.

    Args:
        source: a folder with config and safetensors, a checkpoint as RUN@best, RUN@latest or RUN@500, a GGUF file or a
            folder with one, a hub name, or a loaded model.
        dtype: torch dtype or its name; default: see :func:`default_dtype`.
        device: default cuda where there is one. A loaded model stays where it is.
    Returns:
        (LanguageModel, tokenizer or None)
    Raises:
        InputError: nothing there, no safetensors (pickled weights are not read), or a kind that is not supported.
    """
    if isinstance(source, PreTrainedModel):
        return LanguageModel(source.eval(), source.config.name_or_path or type(source).__name__), None
    device = _device(device)
    folder, gguf = _locate(source)
    if dtype is None:
        stored = None if device.type == "cpu" else stored_dtype(source, trust_remote_code=trust_remote_code)
        dtype = default_dtype(stored, device.type)
        if device.type != "cpu" and stored != dtype:
            kind = "quantised or unstated" if stored is None else dtype_name(stored)
            text = "%s: weights (%s) are loaded in %s; use dtype='float32' (--dtype float32) for full precision"
            log.warning(text, source, kind, dtype_name(dtype))
    dtype = float_dtype("dtype", dtype)
    options = {"trust_remote_code": trust_remote_code} | ({"gguf_file": gguf} if gguf else {})
    with quiet_transformers():
        try:
            weights = {} if gguf else {"use_safetensors": True}
            module, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, **weights, **options
            )
        except SafetensorError as error:
            raise InputError(f"{source}: a weight file is cut short or damaged: {_first_line(error)}") from error
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{source}: cannot load the model: {_first_line(error)}") from error
        if missing := sorted(found["missing_keys"]):  # transformers draws them at random
            raise InputError(f"{source}: {len(missing)} tensors are missing from its weights, such as {missing[0]}")
        files = (Path(folder, gguf),) if gguf else _weight_files(folder)
        free = free_memory(device)
        try:
            module = module.to(device)
        except torch.OutOfMemoryError as error:
            size = sum(parameter.nbytes for parameter in module.parameters()) / 1e9
            room = free_memory_text(device, free)
            raise InputError(f"{source}: its weights take {size:.2f} GB, but {room}") from error
        return LanguageModel(module.eval(), str(source), files), _load_tokenizer(folder, options)


def load_config(source, *, trust_remote_code=False):
    """The transformers config of what :func:`load` would load, without its weights."""
    folder, gguf = _locate(source)
    options = {"gguf_file": gguf} if gguf else {}
    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{source}: cannot read the config: {_first_line(error)}") from error


def _load_tokenizer(folder, options):
    local = Path(folder)
    if local.is_dir() and "gguf_file" not in options and not any((local / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError) as error:
        log.info("%s: no tokenizer: %s", folder, _first_line(error))
        return None


def stored_dtype(source: str | Path, *, trust_remote_code: bool = False) -> torch.dtype | None:
    """Return the dtype that a checkpoint's config states; None if it states none, and for GGUF files."""
    if _locate(source)[1]:
        return None
    stored = getattr(load_config(source, trust_remote_code=trust_remote_code), "dtype", None)
    return getattr(torch, stored, None) if isinstance(stored, str) else stored


def default_dtype(stored: torch.dtype | None, device_type: str) -> torch.dtype:
    """Return the dtype that weights are loaded in by default.

    float32 on the CPU. Elsewhere the checkpoint's own if it has 16 bits, else bfloat16: float32 weights, which
    `cdgen train` writes, would take twice the memory and several times the time.
    """
    if device_type == "cpu":
        return torch.float32
    return stored if stored in (torch.bfloat16, torch.float16) else torch.bfloat16


def float_dtype(field, dtype):
    """The torch dtype of a name or dtype; `field` is for the message."""
    name = dtype_name(dtype)
    if name not in ("float32", "bfloat16", "float16"):
        raise InputError(f"{field} = {name!r}: use float32, bfloat16 or float16")
    return getattr(torch, name)


def dtype_name(dtype: torch.dtype | str) -> str:
    """`"bfloat16"` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def _locate(source):
    """(folder or hub name, GGUF file name or None)"""
    path = Path(resolve(source)).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{source}: is a file; give a folder with config.json and safetensors, or a .gguf file")
        return str(path.parent), path.name
    if path.is_dir():
        found = sorted(file.name for file in path.glob("*.gguf"))
        if (path / "config.json").exists() or not found:
            if not (path / "config.json").exists():
                raise InputError(f"{source}: holds neither config.json nor a .gguf file")
            return str(path), None
        if len(found) > 1:
            raise InputError(f"{source}: holds {len(found)} GGUF files; name one, as {path / found[0]}")
        return str(path), found[0]
    name = str(source)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise InputError(f"{source}: no such folder or file")
    return name, None


def _weight_files(folder):
    """Config and weights, of a folder or of a hub name that was just loaded."""

    def find(name):
        path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False, local_files_only=True)
        return path and Path(path)

    index = find("model.safetensors.index.json")
    single = find("model.safetensors")
    names = set(json.loads(index.read_text())["weight_map"].values()) if index and not single else ()
    return tuple(path for path in (find("config.json"), single, *map(find, sorted(names))) if path)


def _first_line(error):
    return str(error).strip().split("\n")[0]


@contextlib.contextmanager
def quiet_transformers():
    """Keep transformers' progress bars and advice off the terminal while it loads."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of GGUF conversion obeys no setting
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def versions():
    """Versions of what decides the numbers, by name."""
    return {
        "cdgen": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
