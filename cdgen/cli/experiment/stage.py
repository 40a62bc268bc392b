"""A stage of an experiment."""

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A command of an experiment.

    Args:
        name: name of the stage and of its folder.
        argv: arguments of `cdgen`, starting with the command's name.
        inputs: names of the stages that it reads from.
        always: run the command each time, because it reads files from outside the output folder and checks them itself,
            or because it is quick and prints what the user wants to see.
    """

    name: str
    argv: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    always: bool = False

    @property
    def command(self) -> str:
        """The command line as one would type it."""
        return f"cdgen {shlex.join(self.argv)}"
