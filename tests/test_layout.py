"""The direction of imports between the packages."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A package may import from its own level and from later ones, never from an earlier one. Levels that share a line are
# independent of one another.
LEVELS = (
    ("cdgen.cli",),
    ("cdgen.integrations",),
    ("cdgen.report",),
    ("cdgen.evaluation", "cdgen.prepare", "cdgen.training"),
    ("cdgen.corpus",),
    ("cdgen.engine",),
    ("cdgen.bench", "cdgen.models", "cdgen.viewer"),
    ("cdgen.storage",),
    ("cdgen.environment", "cdgen.hardware", "cdgen.rng", "cdgen.values", "cdgen.wording"),
    ("cdgen.errors", "cdgen.recipes"),
)
ROOTS = {"cdgen": ROOT / "cdgen", "cdgen_kernels": ROOT / "kernels" / "cdgen_kernels"}


def modules() -> dict[str, ast.Module]:
    """Return the parsed modules of both packages by name."""
    found = {}
    for package, folder in ROOTS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def is_for_type_checkers(node: ast.AST) -> bool:
    """Return whether a node is `if TYPE_CHECKING:`, whose body does not run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(name: str, when_run: bool = False) -> Iterator[str]:
    """Yield what a module imports from the two packages; with `when_run`, without imports for type checkers alone."""
    blocks = [node for node in ast.walk(MODULES[name]) if is_for_type_checkers(node)] if when_run else []
    left_out = {inner for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(MODULES[name]):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def level(name: str) -> int | None:
    """Return the index in LEVELS of a module's package, or None for `cdgen` itself and the kernels."""
    return next(
        (at for at, packages in enumerate(LEVELS) if any(f"{name}.".startswith(f"{one}.") for one in packages)), None
    )


def test_every_module_of_cdgen_has_a_level() -> None:
    outside = {"cdgen", "cdgen.__main__"}
    assert [name for name in MODULES if name.startswith("cdgen.") and level(name) is None and name not in outside] == []


def test_imports_go_one_way() -> None:
    wrong = []
    for name in MODULES:
        for imported in imports(name):
            if name.startswith("cdgen_kernels") and imported.startswith("cdgen."):
                wrong.append((name, imported))
            here, there = level(name), level(imported)
            if here is None or there is None:
                continue
            same_package = name.split(".")[:2] == imported.split(".")[:2]
            if there < here or (there == here and not same_package):
                wrong.append((name, imported))
    assert wrong == []


def test_there_is_no_import_cycle() -> None:
    state: dict[str, bool] = {}  # True: visited completely, False: on the current path

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in state:
            assert state[name], f"import cycle: {' -> '.join((*path, name))}"
            return
        state[name] = False
        for imported in imports(name, when_run=True):
            if imported != name:
                visit(imported, (*path, name))
        state[name] = True

    for name in MODULES:
        visit(name, ())
