"""Habits of the source code that a script can measure: type hints, docstrings, length of functions, comments."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_layout import MODULES, ROOT

MAX_LINES = 60
HINTED = 0.98
DOCUMENTED = 0.9
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Definition(NamedTuple):
    """A function, method or class of one of the packages."""

    name: str  # dotted
    node: Function | ast.ClassDef
    nested: bool  # inside a function

    @property
    def is_public(self) -> bool:
        return not self.nested and not any(part.startswith("_") for part in self.name.split("."))


def is_kernel(node: ast.AST) -> bool:
    """Return whether Triton compiles a function. Its language has no types, and kernels may be long."""
    decorators = getattr(node, "decorator_list", [])
    return any(ast.unparse(one).startswith("triton.jit") for one in decorators)


def definitions(name: str, node: ast.AST, nested: bool = False) -> Iterator[Definition]:
    """Yield the functions, methods and classes below a node, except Triton kernels."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            if is_kernel(child):
                continue
            dotted = f"{name}.{child.name}"
            yield Definition(dotted, child, nested)
            yield from definitions(dotted, child, nested or isinstance(child, Function))
        else:
            yield from definitions(name, child, nested)


ALL = [one for name, tree in MODULES.items() for one in definitions(name, tree)]
FUNCTIONS = [one for one in ALL if isinstance(one.node, Function)]


def hints(node: Function) -> Iterator[bool]:
    """Yield whether there is a type hint, for every argument but self and cls and for the result."""
    given = node.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    for argument in arguments:
        if argument.arg not in ("self", "cls"):
            yield argument.annotation is not None
    yield node.returns is not None


@pytest.mark.parametrize("package", ["cdgen.", "cdgen_kernels."])
def test_functions_have_type_hints(package: str) -> None:
    found = {one.name: list(hints(one.node)) for one in FUNCTIONS if one.name.startswith(package)}
    every = [hint for of_function in found.values() for hint in of_function]
    missing = [name for name, of_function in found.items() if not all(of_function)]
    assert sum(every) / len(every) >= HINTED, missing


@pytest.mark.parametrize("package", ["cdgen.", "cdgen_kernels."])
def test_public_definitions_have_docstrings(package: str) -> None:
    public = [one for one in ALL if one.is_public and one.name.startswith(package)]
    missing = [one.name for one in public if ast.get_docstring(one.node) is None]
    assert 1 - len(missing) / len(public) >= DOCUMENTED, missing


def test_functions_are_short() -> None:
    long = {one.name: one.node.end_lineno - one.node.lineno + 1 for one in FUNCTIONS}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment in a file; only the first line of a longer comment."""
    with path.open("rb") as file:
        found = {one.start[0]: one.string for one in tokenize.tokenize(file.readline) if one.type == tokenize.COMMENT}
    yield from ((line, text) for line, text in found.items() if line - 1 not in found)


def test_comments_stand_on_their_own() -> None:
    """A comment does not continue the code before it."""
    folders = ("cdgen", "kernels", "benchmarks", "tests", "tools")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    dangling = re.compile(r"# ?(of|which|whose|that|whence)\b")
    wrong = [f"{path}:{line} {text}" for path in paths for line, text in comments(path) if dangling.match(text)]
    assert wrong == []


def is_text_without_encoding(call: ast.Call) -> bool:
    """Return whether a call opens a text file in the encoding of the locale."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if name not in ("open", "read_text", "write_text") or ast.unparse(call.func) == "os.open":
        return False
    binary = any(isinstance(one, ast.Constant) and "b" in str(one.value) for one in call.args[-1:])
    return not binary and not any(one.arg in ("encoding", None) for one in call.keywords)


@pytest.mark.parametrize("name", MODULES)
def test_text_files_are_never_read_in_the_encoding_of_the_locale(name: str) -> None:
    calls = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)]
    assert [ast.unparse(call) for call in calls if is_text_without_encoding(call)] == []
