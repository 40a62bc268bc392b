"""An extension of griffe that rewrites docstrings in the form that its parser and Markdown expect."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`(~?)([\w.]+)`")
_SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Attributes|Raises|Returns|Yields):\n)")
_GROUP = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {5,}.*)*)", re.M)  # arguments with one description


class Docstrings(griffe.Extension):
    """Replace roles, such as :func:`~cdgen.train`, by names, and separate sections and the arguments of a group."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that griffe has read."""
        if obj.docstring is not None:
            text = _ROLE.sub(_name, obj.docstring.value)
            obj.docstring.value = _SECTION.sub("\n\n", _GROUP.sub(_separate, text))


def _name(role: re.Match[str]) -> str:
    """Return the name in a role as code; after `~`, only its last part."""
    return f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`"


def _separate(group: re.Match[str]) -> str:
    """Return an entry for each argument of a group."""
    return "\n".join(f"    {name}: {group[2]}" for name in group[1].split(", "))
