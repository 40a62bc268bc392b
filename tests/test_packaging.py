"""Packaging: what the kernels may import, and what the source distributions, wheels and editable installs hold.

Two distributions are built from the repository: cdgen, and cdgen-kernels in the folder kernels.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cdgen
import cdgen_kernels

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
    assert [(file, name) for file, name in imports_of("kernels/cdgen_kernels") if name not in allowed] == []
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_both_distributions_have_one_version() -> None:
    """Both contain cdgen_kernels, so whichever is installed last must leave the same files."""
    assert cdgen.__version__ == cdgen_kernels.__version__


def test_the_sources_of_the_extension_exist_once() -> None:
    assert (ROOT / "kernels" / "csrc").is_symlink() and (ROOT / "kernels" / "LICENSE").is_symlink()
    assert (ROOT / "kernels" / "csrc").samefile(ROOT / "csrc")


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
    return Path(shutil.copytree(ROOT, folder, ignore=ignore, symlinks=True))


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
    assert "kernels/build_extension.py" in names
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
def test_the_kernels_alone_install_from_a_source_distribution(tmp_path: Path) -> None:
    """The sdist holds the files behind the link csrc; the wheel built from it holds cdgen_kernels and needs torch."""
    source = copy_of_the_repository(tmp_path / "source") / "kernels"
    run(sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path), cwd=source, CDGEN_EXT="0")
    sdist = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    sources = {f"csrc/{path.name}" for path in ROOT.glob("csrc/*.*") if path.suffix in (".cpp", ".h")}
    needed = {*sources, "build_extension.py", "LICENSE", "README.md"}
    assert needed <= set(members) and all(members[name].isfile() and members[name].size for name in needed)

    run(*PIP, "wheel", *OFFLINE, "-w", str(tmp_path), str(sdist), CDGEN_EXT="0")
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"cdgen_kernels"}
    assert re.findall(r"^Requires-Dist: (.*)$", metadata, re.M) == ["torch>=2.10"]
    assert {"cdgen_kernels/triton/sample.py", "cdgen_kernels/py.typed"} <= names

    target = tmp_path / "target"
    run(*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    code = f"import cdgen_kernels; assert cdgen_kernels.__file__ == {str(target / 'cdgen_kernels' / '__init__.py')!r}"
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target))


@pytest.mark.slow
def test_a_build_without_a_compiler_warns_and_installs(tmp_path: Path) -> None:
    source = copy_of_the_repository(tmp_path / "source") / "kernels"
    (tmp_path / "no-programs").mkdir()
    command = (*PIP, "wheel", "-vv", *OFFLINE, "-w", str(tmp_path), str(source))
    environment = {"PATH": str(tmp_path / "no-programs"), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no C++ extension, so the slower reference implementation runs" in done.stdout + done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert "cdgen_kernels/ops.py" in names and not any(name.endswith(".so") for name in names)

    refused = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "CDGEN_EXT": "require"}, cwd=tmp_path, check=False
    )
    assert refused.returncode != 0


@pytest.mark.slow
def test_an_editable_install_finds_the_packages_in_place(tmp_path: Path) -> None:
    source, target = copy_of_the_repository(tmp_path / "source"), tmp_path / "target"
    run(*PIP, "install", *OFFLINE, "--target", str(target), "-e", str(source), CDGEN_EXT="0")
    import_ops(source / "kernels" / "cdgen_kernels", target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "kernels"])
def test_an_isolated_build_finds_the_installed_torch(folder: str, tmp_path: Path) -> None:
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
    printed = run(sys.executable, "-c", code, cwd=ROOT / folder, PYTHONPATH=str(tmp_path), CDGEN_EXT="require")
    assert printed == "['cdgen_kernels._C']\n"
