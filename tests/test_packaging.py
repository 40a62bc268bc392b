"""Folders and imports: who may import whom, what a wheel holds, and whose name `kernels` is."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command, cwd=ROOT, **environment):
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imports_of(folder):
    for path in sorted((ROOT / folder).glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                yield path.name, name.split(".")[0]


def test_kernels_need_neither_cdgen_nor_transformers():
    allowed = {"cdgen_kernels", "torch", "triton", *sys.stdlib_module_names}
    assert [(file, name) for file, name in imports_of("kernels") if name not in allowed] == []
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_run_without_transformers(tmp_path):
    """In a process that cannot import transformers, or cdgen."""
    for name in ("transformers", "cdgen"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    code = """
import torch
from cdgen_kernels.ops import make_sampling_tensors, sample
good = torch.eye(3) * 50
assert sample(good, torch.zeros(3, 3), make_sampling_tensors(3)).token.tolist() == [0, 1, 2]
import sys
assert "transformers" not in sys.modules
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=path)


def test_our_folder_does_not_shadow_the_package_named_kernels(tmp_path):
    """transformers looks for a package of that name; from the repo's root it must find that one, or none."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("here = 'the other one'")
    code = "import kernels; assert kernels.here == 'the other one'"
    run(sys.executable, "-c", code, PYTHONPATH=os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tmp_path)]))


@pytest.mark.parametrize("mode", ["wheel", "editable"])
def test_the_packages_install(mode, tmp_path):
    """A wheel holds both packages, the data and no test; an editable install finds them in place."""
    source = tmp_path / "source"
    leave = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "__pycache__", "build", "dist", "demo-corpus")
    shutil.copytree(ROOT, source, ignore=leave)
    pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
    no_network = ("--no-build-isolation", "--no-deps", "--no-index")
    if mode == "wheel":
        run(*pip, "wheel", *no_network, "-w", str(tmp_path), str(source), CDGEN_EXT="0")
        wheel = next(tmp_path.glob("*.whl"))
        names = set(zipfile.ZipFile(wheel).namelist())
        assert {
            "cdgen/cli/app.py",
            "cdgen_kernels/triton/sample.py",
            "cdgen/recipes/tiny.toml",
            "cdgen/py.typed",
        } <= names
        assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"cdgen", "cdgen_kernels"}
        assert {"cdgen/cli/demo_prompts.txt", "cdgen/py.typed", "cdgen_kernels/py.typed"} <= names
        source = tmp_path / "target"
        run(*pip, "install", "--no-deps", "--no-index", "--target", str(source), str(wheel))
        environment = {"PYTHONPATH": str(source)}
        place = source / "cdgen_kernels"
    else:
        target = tmp_path / "target"
        run(*pip, "install", *no_network, "--target", str(target), "-e", str(source), CDGEN_EXT="0")
        # pip puts the hook that an editable install is into the target; site reads it
        environment = {"PYTHONPATH": str(target)}
        place = source / "kernels" / "cdgen_kernels"
    code = f"""
import site; site.addsitedir({str(tmp_path / "target")!r})
import cdgen_kernels.ops, cdgen
assert cdgen_kernels.ops.__file__ == {str(place / "ops.py")!r}, cdgen_kernels.ops.__file__
"""
    run(sys.executable, "-S", "-c", _with_site_packages(code), cwd=tmp_path, **environment)


def _with_site_packages(code):
    """The environment's packages behind those under test: without -S, its own cdgen would be found first."""
    import torch

    return f"import sys; sys.path.append({str(Path(torch.__file__).parent.parent)!r})\n{code}"
