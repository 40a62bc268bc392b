"""The parts of a Markdown page that run."""

import re
from typing import NamedTuple

# Programs whose names begin a command in an indented block, which may also show output or a diagram.
_PROGRAMS = "cdgen|make|pip|python[0-9.]*|accelerate|torchrun|export|hf|sbatch|srun"


class Block(NamedTuple):
    """A part of a page that runs: commands, a Python program, or a TOML file."""

    kind: str  # "shell", "python" or "toml"
    text: str
    name: str = ""  # the name of a TOML file


def page_blocks(text: str) -> list[Block]:
    """Return the parts of a page that run, in order: fenced blocks by language, and commands in indented blocks."""
    found: list[Block] = []
    parts = re.split(r"^```(.*)\n((?:.*\n)*?)^```$", text, flags=re.M)
    for at in range(0, len(parts), 3):
        found.append(Block("shell", "\n".join(shell_commands(parts[at], indent=4))))
        if at + 1 < len(parts):
            language, _, title = parts[at + 1].partition(" ")
            kind = "shell" if language in ("bash", "sh", "shell", "console") else language
            name = re.sub(r'title="(.*)"', r"\1", title)
            found.append(Block(kind, parts[at + 2].replace("\\\n", "") if kind == "shell" else parts[at + 2], name))
    return [block for block in found if block.text.strip() and block.kind in ("shell", "python", "toml")]


def shell_commands(text: str, indent: int) -> list[str]:
    """Return the commands in indented blocks, without comments."""
    joined = re.sub(r"\\\n *", "", text)
    lines = [line[indent:] for line in joined.splitlines() if re.match(rf" {{{indent}}}\S", line)]
    found = [re.sub(r"\s{2,}#.*", "", line) for line in lines]
    return [line for line in found if re.match(rf"({_PROGRAMS})\s|[A-Z_]+=", line)]
