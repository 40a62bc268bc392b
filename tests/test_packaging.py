"""Packaging: what the kernels may import, and what a source distribution, a wheel and an editable install hold."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PIP = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
OFFLINE = ("--no-build-isolation", "--no-deps", "--no-index")


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command that must succeed and return its output."""
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imports_of(folder: str) -> Iterator[tuple[str, str]]:
    """Yield (file name, top-level package) for every import below a folder."""
    for path in sorted((ROOT / folder).glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                yield path.name, name.split(".")[0]


def test_kernels_need_neither_cdgen_nor_transformers() -> None:
    allowed = {"cdgen_kernels", "torch", "triton", *sys.stdlib_module_names}
    assert [(file, name) for file, name in imports_of("kernels") if name not in allowed] == []
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_run_without_transformers(tmp_path: Path) -> None:
    """The ops work in a process that can import neither transformers nor cdgen."""
    for name in ("transformers", "cdgen"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    code = """
import torch
from cdgen_kernels import contrastive_sample, make_sampling_tensors
good = torch.eye(3) * 50
assert contrastive_sample(good, torch.zeros(3, 3), make_sampling_tensors(3)).token.tolist() == [0, 1, 2]
import sys
assert "transformers" not in sys.modules
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=path)


def test_our_folder_does_not_shadow_the_package_named_kernels(tmp_path: Path) -> None:
    """transformers looks for PyPI's package `kernels`; from the repository's root it must find that one or none."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("here = 'the other one'")
    code = "import kernels; assert kernels.here == 'the other one'"
    run(sys.executable, "-c", code, PYTHONPATH=os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tmp_path)]))


def copy_of_the_repository(folder: Path) -> Path:
    ignore = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "__pycache__", "build", "dist", "demo-corpus")
    return Path(shutil.copytree(ROOT, folder, ignore=ignore))


def import_ops(kernels: Path, site: Path, folder: Path) -> None:
    """Check that a new process, with `site` as a site directory, imports `cdgen_kernels` from the folder `kernels`."""
    # The environment's packages come behind those under test: without -S its own cdgen would be found first.
    code = f"""
import sys; sys.path.append({str(Path(torch.__file__).parent.parent)!r})
import site; site.addsitedir({str(site)!r})
import cdgen_kernels.ops, cdgen
assert cdgen_kernels.ops.__file__ == {str(kernels / "ops.py")!r}, cdgen_kernels.ops.__file__
"""
    run(sys.executable, "-S", "-c", code, cwd=folder, PYTHONPATH=str(site))


@pytest.mark.slow
def test_a_source_distribution_builds_a_wheel_that_installs(tmp_path: Path) -> None:
    """The sdist holds all C++ files; the wheel built from it holds both packages, their data and no tests."""
    source = copy_of_the_repository(tmp_path / "source")
    run(sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path), cwd=source, CDGEN_EXT="0")
    sdist = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"csrc/{path.name}" for path in ROOT.glob("csrc/*.*") if path.suffix in (".cpp", ".h")} <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "tools/")) for name in names)

    run(*PIP, "wheel", *OFFLINE, "-w", str(tmp_path), str(sdist), CDGEN_EXT="0")
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"cdgen", "cdgen_kernels"}
    assert {
        "cdgen/cli/app.py",
        "cdgen/cli/demo_prompts.txt",
        "cdgen/recipes/tiny.toml",
        "cdgen/evaluation/task_files/blimp.toml",
        "cdgen/py.typed",
    } <= names
    assert {"cdgen_kernels/triton/sample.py", "cdgen_kernels/py.typed"} <= names
    assets = {str(path.relative_to(ROOT)) for kind in ("css", "js", "html") for path in ROOT.glob(f"cdgen/**/*.{kind}")}
    assert "cdgen/viewer/base.css" in assets and assets <= names

    target = tmp_path / "target"
    run(*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    import_ops(target / "cdgen_kernels", target, tmp_path)


@pytest.mark.slow
def test_an_editable_install_finds_the_packages_in_place(tmp_path: Path) -> None:
    source, target = copy_of_the_repository(tmp_path / "source"), tmp_path / "target"
    run(*PIP, "install", *OFFLINE, "--target", str(target), "-e", str(source), CDGEN_EXT="0")
    import_ops(source / "kernels" / "cdgen_kernels", target, tmp_path)


@pytest.mark.slow
def test_an_isolated_build_finds_the_installed_torch(tmp_path: Path) -> None:
    """Without this, `pip install .[train]` would replace a build with the extension by one without it."""
    import setuptools

    (tmp_path / "setuptools").symlink_to(Path(setuptools.__file__).parent)
    isolate = "import sys, sysconfig\nsys.path = [p for p in sys.path if p != sysconfig.get_path('purelib')]\n"
    (tmp_path / "sitecustomize.py").write_text(isolate)  # as pip does
    code = """
import importlib.util, runpy, setuptools
assert importlib.util.find_spec("torch") is None
setuptools.setup = lambda **arguments: print([extension.name for extension in arguments["ext_modules"]])
runpy.run_path("setup.py")
"""
    assert run(sys.executable, "-c", code, PYTHONPATH=str(tmp_path), CDGEN_EXT="require") == "['cdgen_kernels._C']\n"
