"""What tests of generated corpora share: seeds, the content of a folder, and which documents are decoded when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM
from cdgen.corpus.seeds import Seed
from cdgen.engine.outputs import CompletionOutput


def numbered_seeds(count: int) -> list[Seed]:
    """Return seeds s0, s1, ... of two tokens each: start of text, and a token that no other seed has."""
    return [Seed(f"s{number}", [0, 20 + number]) for number in range(count)]


def bytes_of(out: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by path within it."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def decoded(lm: ContrastiveLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list to which the sequences that are decoded from now on are added."""
    found: list[tuple[int, int]] = []
    decode = lm.continue_sequences

    def spy(prompts: Any, sequences: Any, params: Any, **callbacks: Any) -> None:
        found.extend(sequences)
        decode(prompts, sequences, params, **callbacks)

    monkeypatch.setattr(lm, "continue_sequences", spy)
    return found


def finish_in_order(lm: ContrastiveLM, monkeypatch: pytest.MonkeyPatch, key: Callable[[int], int]) -> None:
    """Let the sequences of each call finish in the order of a key of their index."""
    decode = lm.continue_sequences

    def ordered(prompts: Any, sequences: Any, params: Any, on_finished: Any, on_tokens: Any) -> None:
        outputs: dict[int, CompletionOutput] = {}
        decode(prompts, sequences, params, on_finished=outputs.__setitem__)
        for index in sorted(outputs, key=key):
            on_tokens(len(outputs[index].token_ids))
            on_finished(index, outputs[index])

    monkeypatch.setattr(lm, "continue_sequences", ordered)
