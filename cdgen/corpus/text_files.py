"""Read text files, compressed or not, in bounded memory, and report damage with its place."""

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from cdgen.errors import InputError, first_line

_BLOCK = 1 << 20  # bytes per read
_ENCODINGS = (  # byte-order marks; UTF-32 precedes UTF-16, whose mark its own begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PACKINGS = {".gz": "gzip", ".zst": "zstd"}


def check_path(path: Path, noun: str = "text") -> None:
    """Check that a path names a file or folder that can be read.

    Raises:
        InputError: it does not exist, is a device or pipe, or its name is not UTF-8.
    """
    try:
        str(path).encode()
        if path.is_dir() or path.is_file():
            return
        found = path.exists()
    except UnicodeEncodeError as error:  # a manifest and a seed's name could not hold it
        raise InputError(f"{path}: its name is not UTF-8; rename it") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {_reason(error)}") from error
    if found:
        raise InputError(f"{path}: is neither a file nor a folder")
    raise InputError(f"{path}: no such {noun} file" if noun != "text" else f"{path}: no such file")


def whole_text(path: Path) -> str:
    """Return the text of a file, with lines that end in "\\n"."""
    return "".join(pieces(path)).replace("\r\n", "\n")


def lines(path: str | Path) -> Iterator[str]:
    """Iterate over the lines of a text file, without their ends ("\\n" or "\\r\\n")."""
    parts: list[str] = []  # the beginning of a line that is longer than a block
    for text in pieces(Path(path)):
        *finished, rest = text.split("\n")
        if finished:
            yield "".join([*parts, finished[0]]).removesuffix("\r")
            for line in finished[1:]:
                yield line.removesuffix("\r")
            parts = []
        parts.append(rest)
    if last := "".join(parts):
        yield last.removesuffix("\r")


def pieces(path: Path) -> Iterator[str]:
    """Iterate over a file's text in pieces of about a megabyte, with the ends of lines as they are.

    Raises:
        InputError: the file cannot be read; the message names the byte in the decompressed file.
    """
    with _opened(path) as file:
        block = file.read(_BLOCK)
        mark, encoding = next((pair for pair in _ENCODINGS if block.startswith(pair[0])), (b"", "utf-8"))
        decoder, read, block = codecs.getincrementaldecoder(encoding)(), len(mark), block[len(mark) :]
        more = True
        while more:
            start = read - len(decoder.getstate()[0])  # the first byte of a character that the last block cut
            if encoding == "utf-8" and b"\0" in block:
                raise InputError(f"{path}: byte {read + block.index(0)} is NUL, so it is not text; {_remedy(block)}")
            following = file.read(_BLOCK)
            more = bool(following)
            try:
                yield decoder.decode(block, final=not more)
            except UnicodeDecodeError as error:
                name = encoding[:6].rstrip("-").upper()
                remedy = f"convert the file, for example with iconv -f {'LATIN1' if name == 'UTF-8' else name} -t UTF-8"
                raise InputError(f"{path}: byte {start + error.start} is not {name}; {remedy}") from error
            read, block = read + len(block), following


def _remedy(block: bytes) -> str:
    """Return the remedy for a file with NUL bytes, which are frequent in UTF-16 and UTF-32."""
    width = 32 if b"\0\0\0" in block else 16
    order = "BE" if block.index(0) % 2 == 0 else "LE"
    return (
        f"if it is UTF-{width} without a byte-order mark, convert it with iconv -f UTF-{width}{order} -t UTF-8, "
        "otherwise remove its NUL bytes"
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file as a decompressed binary stream. Damage raises InputError, also while the stream is read."""
    kind = path.suffix.lower()
    try:
        if kind == ".zst":
            import pyarrow

            with open(path, "rb") as packed, pyarrow.input_stream(packed, compression="zstd") as stream:
                yield stream
        else:
            with (gzip.open if kind == ".gz" else open)(path, "rb") as stream:
                yield cast(BinaryIO, stream)
    except (OSError, EOFError, zlib.error) as error:
        what = "cannot be read" if getattr(error, "errno", None) else f"damaged {_PACKINGS.get(kind, 'text')} file"
        raise InputError(f"{path}: {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)
