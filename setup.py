"""Builds the two packages and, where a C++ compiler is at hand, the CPU extension `cdgen_kernels._C`.

CDGEN_EXT=auto (default) tries the extension and carries on without it, 0 leaves it out, require fails without it.
"""

import os
import sys
import warnings

from setuptools import setup

MODE = os.environ.get("CDGEN_EXT", "auto")
if MODE not in ("auto", "0", "require"):
    sys.exit(f"CDGEN_EXT={MODE}: use auto, 0 or require")


def extension():
    """setup() arguments for the extension: libtorch's stable ABI and Python's limited API, so one wheel serves many."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class BuildOrExplain(BuildExtension):
        """Without the extension everything works on the reference path: a failed build is told, not fatal."""

        def run(self):
            try:
                super().run()
            except Exception as error:  # compilers fail in as many ways as there are compilers
                if MODE == "require":
                    raise
                warnings.warn(f"cdgen: built without its C++ extension, the slower reference runs: {error}", stacklevel=1)
                self.extensions = []  # nothing to copy into the package

    flags = ["-O3", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden"]
    limits = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
    sources = ["csrc/block_max.cpp", "csrc/ops.cpp"]
    return {
        "ext_modules": [
            CppExtension("cdgen_kernels._C", sources, extra_compile_args=flags + limits, py_limited_api=True)
        ],
        "cmdclass": {"build_ext": BuildOrExplain},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(
    packages=["cdgen", "cdgen_kernels"],
    package_dir={"cdgen": "cdgen", "cdgen_kernels": "kernels"},  # a package named `kernels` exists on PyPI
    package_data={"cdgen": ["data/*"]},
    **({} if MODE == "0" else extension()),
)
