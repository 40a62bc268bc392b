"""Build the two packages and, if torch and a C++ compiler are present, the CPU extension `cdgen_kernels._C`.

The environment variable CDGEN_EXT selects what happens to the extension: `auto` (default) tries to build it and warns
if that fails, `0` skips it, `require` fails without it.

pip builds in an isolated environment by default. The extension must be built with the torch that it will run with, so
it is looked up in the environment that pip installs into.
"""

import os
import sys
import sysconfig
import warnings
from typing import Any

from setuptools import find_packages, setup

SOURCES = ["attention", "cross_entropy", "layers", "mass", "ops", "passes", "products", "race"]
MODE = os.environ.get("CDGEN_EXT", "auto")
if MODE not in ("auto", "0", "require"):
    sys.exit(f"CDGEN_EXT={MODE}: use auto, 0 or require")


def warn(reason: object) -> None:
    """Warn that the package will have no C++ extension, and why."""
    warnings.warn(f"cdgen: no C++ extension, so the slower reference implementation runs: {reason}", stacklevel=2)


def extension() -> dict[str, Any]:
    """Return the arguments of setup() for the extension.

    It uses libtorch's stable ABI and Python's limited API, so one wheel serves many versions of both.
    """
    sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # for an isolated build
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if MODE == "require":
            raise
        warn(f"{error}; install torch first")
        return {}

    class BuildOrWarn(BuildExtension):
        """Warn if the build fails: without the extension everything works on the reference path."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # compilers fail in many ways
                if MODE == "require":
                    raise
                warn(error)
                self.extensions = []  # nothing to copy into the package

    flags = ["-O3", "-funroll-loops", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden"]
    stable_abi = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # torch 2.10
    sources = [f"csrc/{name}.cpp" for name in SOURCES]
    return {
        "ext_modules": [
            CppExtension("cdgen_kernels._C", sources, extra_compile_args=flags + stable_abi, py_limited_api=True)
        ],
        "cmdclass": {"build_ext": BuildOrWarn},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(
    packages=find_packages(include=["cdgen", "cdgen.*"]) + find_packages("kernels"),
    # The folder `kernels` is not a package: PyPI has a package of that name.
    package_dir={"cdgen": "cdgen", "cdgen_kernels": "kernels/cdgen_kernels"},
    package_data={"": ["py.typed", "*.toml", "*.txt", "*.css", "*.js", "templates/*.html"]},
    **({} if MODE == "0" else extension()),
)
