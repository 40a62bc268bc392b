"""Tokenizers: loaded exactly as their files describe them, and used by one rule for special tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cdgen.errors import InputError
from cdgen.models.files import read_json
from cdgen.models.load_errors import loading, reason
from cdgen.values import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHOLE = "tokenizer.json"
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARIES = ("*.model", "*.tiktoken", "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "tokenizer*.py")


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer in a folder; see :func:`find_tokenizer`.

    Raises:
        InputError: there is no such folder, or it holds no tokenizer, or one that cannot be loaded.
    """
    path = expanded(folder)
    if not str(folder) or not path.is_dir():
        raise InputError(f"{str(folder) or repr('')}: no such folder; give one with a tokenizer")
    tokenizer = find_tokenizer(path)
    if tokenizer is None:
        raise InputError(f"{folder}: holds no tokenizer (no {_WHOLE})")
    return tokenizer


def find_tokenizer(
    folder: Path, gguf: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase | None":
    """Load the tokenizer in a folder if there is one.

    A tokenizer.json is used exactly as it is, with the special tokens and the chat template of the files beside it. The
    classes of transformers that tokenizer_config.json may name rebuild parts of it, and would give other ids.

    Args:
        folder: the folder of a tokenizer or a model.
        gguf: name of a GGUF file in the folder that holds the tokenizer.
        trust_remote_code: run Python code that comes with a tokenizer that has no tokenizer.json.
    Returns:
        the tokenizer, or None if the folder has no file of a tokenizer
    Raises:
        InputError: the files are damaged or incomplete, or need a package that is not installed.
    """
    if gguf is not None:
        with loading(folder / gguf, "the tokenizer"):
            return _checked(AutoTokenizer.from_pretrained(folder, gguf_file=gguf, trust_remote_code=trust_remote_code))
    for name in _CONFIGS:
        if (folder / name).exists():
            read_json(folder / name)
    if (folder / _WHOLE).exists():
        if not isinstance(read_json(folder / _WHOLE).get("model"), dict):
            raise InputError(f"{folder / _WHOLE}: is not a tokenizer: it has no model")
        with loading(folder / _WHOLE, "the tokenizer"):
            return _checked(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
    if not any(found for pattern in _VOCABULARIES for found in folder.glob(pattern)):
        if (folder / _CONFIGS[0]).exists():
            raise InputError(f"{folder}: holds {_CONFIGS[0]}, but neither {_WHOLE} nor another vocabulary")
        return None
    with loading(folder, "the tokenizer"):
        return _checked(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code))


def _checked(tokenizer: Any) -> "PreTrainedTokenizerBase":
    if not tokenizer.get_vocab():
        raise ValueError("its vocabulary is empty")
    return tokenizer


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    text: Any,
    name: str,
    *,
    add_special: bool = False,
    parse_special: bool = False,
) -> Any:
    """Return the token ids of a text, or a list of them for a list of texts.

    This is the one rule for prompts, training corpora and test texts: a "</s>" in a text is text, and does not end it.

    Args:
        tokenizer: encodes the text.
        text: a string or a list of strings.
        name: what the text is, for error messages.
        add_special: add the tokenizer's own start-of-text and end-of-text tokens.
        parse_special: read "</s>" and the like as special tokens.
    Raises:
        InputError: the tokenizer cannot encode the text.
    """
    options = {"add_special_tokens": add_special, "split_special_tokens": not parse_special, "verbose": False}
    try:
        return tokenizer(text, **options)["input_ids"]
    except Exception as error:  # errors of the tokenizers library have no type of their own
        raise InputError(f"{name}: cannot be encoded: {_why(text, error)}") from error


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], skip_special_tokens: bool) -> str:
    """Return the text of token ids; spaces are not cleaned up."""
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(ids, **options))


def encode_with_offsets(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], name: str
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Return the token ids of texts, and the characters that each token stands for.

    Special tokens are treated as in :func:`encode`, with those that the tokenizer adds.

    Args:
        tokenizer: encodes the texts.
        texts: any number of texts.
        name: what a text is, for error messages.
    Returns:
        For each text, its ids, and the start and end of each token in it; (0, 0) for an added special token.
    Raises:
        InputError: the tokenizer cannot encode a text, or is a slow (Python) one, which gives no offsets.
    """
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise InputError(f"the tokenizer ({kind}) gives no character offsets; provide a tokenizer.json")
    options: dict[str, Any] = {"add_special_tokens": True, "split_special_tokens": True, "verbose": False}
    if not texts:
        return []
    try:
        found = tokenizer(list(texts), return_offsets_mapping=True, **options)
    except Exception as error:
        raise InputError(f"{name}: cannot be encoded: {_why(list(texts), error)}") from error
    return list(zip(found["input_ids"], found["offset_mapping"], strict=True))


def _why(text: str | list[str], error: Exception) -> str:
    """Return why a tokenizer did not accept a text."""
    texts = [text] if isinstance(text, str) else text
    surrogates = (character for one in texts for character in one if "\ud800" <= character <= "\udfff")
    found = next(surrogates, None)
    return reason(error) if found is None else f"it contains {found!a}, half of a surrogate pair"
