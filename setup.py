"""Builds the two packages and, where torch and a C++ compiler are at hand, the CPU extension `cdgen_kernels._C`.

CDGEN_EXT=auto (default) tries the extension and carries on without it, 0 leaves it out, require fails without it.
An isolated build sees no torch: `pip install --no-build-isolation .` lets it see the one that is installed.
"""

import os
import sys
import warnings

from setuptools import find_packages, setup

MODE = os.environ.get("CDGEN_EXT", "auto")
if MODE not in ("auto", "0", "require"):
    sys.exit(f"CDGEN_EXT={MODE}: use auto, 0 or require")


def explain(error):
    warnings.warn(f"cdgen: no C++ extension, the slower reference runs instead: {error}", stacklevel=2)


def extension():
    """setup() arguments for the extension: libtorch's stable ABI and Python's limited API, so one wheel serves many."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if MODE == "require":
            raise
        explain(f"{error}; install torch, then cdgen with --no-build-isolation")
        return {}

    class BuildOrExplain(BuildExtension):
        """Without the extension everything works on the reference path: a failed build is told, not fatal."""

        def run(self):
            try:
                super().run()
            except Exception as error:  # compilers fail in as many ways as there are compilers
                if MODE == "require":
                    raise
                explain(error)
                self.extensions = []  # nothing to copy into the package

    flags = ["-O3", "-funroll-loops", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden"]
    stable_abi = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # torch 2.10
    sources = ["csrc/attention.cpp", "csrc/cross_entropy.cpp", "csrc/layers.cpp", "csrc/passes.cpp", "csrc/ops.cpp"]
    return {
        "ext_modules": [
            CppExtension("cdgen_kernels._C", sources, extra_compile_args=flags + stable_abi, py_limited_api=True)
        ],
        "cmdclass": {"build_ext": BuildOrExplain},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(
    packages=find_packages(include=["cdgen", "cdgen.*"]) + find_packages("kernels"),
    package_dir={"cdgen": "cdgen", "cdgen_kernels": "kernels/cdgen_kernels"},  # PyPI has a package named `kernels`
    package_data={"": ["py.typed", "*.toml", "*.txt"]},
    **({} if MODE == "0" else extension()),
)
