"""What tests of generated corpora share: seeds, and the content of a folder."""

from pathlib import Path

from cdgen.corpus.seeds import Seed


def numbered_seeds(count: int) -> list[Seed]:
    """Return seeds s0, s1, ... of two tokens each: start of text, and a token that no other seed has."""
    return [Seed(f"s{number}", [0, 20 + number]) for number in range(count)]


def bytes_of(out: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by path within it."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
