"""Arguments of setuptools' setup() for the C++ extension `cdgen_kernels._C`; both distributions are built with them.

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

SOURCES = ["attention", "cross_entropy", "layers", "mass", "ops", "passes", "products", "race"]
MODE = os.environ.get("CDGEN_EXT", "auto")
if MODE not in ("auto", "0", "require"):
    sys.exit(f"CDGEN_EXT={MODE}: use auto, 0 or require")


def warn(reason: object) -> None:
    """Warn that the package will have no C++ extension, and why."""
    message = f"cdgen_kernels: no C++ extension, so the slower reference implementation runs: {reason}"
    warnings.warn(message, stacklevel=2)


def extension() -> dict[str, Any]:
    """Return the arguments of setup() for the extension; none if it is skipped or torch is not installed.

    It uses libtorch's stable ABI and Python's limited API, so one wheel serves many versions of both. The sources are
    in the folder `csrc` beside the setup.py that calls this function.
    """
    if MODE == "0":
        return {}
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
    if "-g" not in os.environ.get("CFLAGS", ""):
        flags.append("-g0")  # Python's own flags ask for debug information, which is most of the library's size
    stable_abi = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # torch 2.10
    sources = [f"csrc/{name}.cpp" for name in SOURCES]
    return {
        "ext_modules": [
            CppExtension("cdgen_kernels._C", sources, extra_compile_args=flags + stable_abi, py_limited_api=True)
        ],
        "cmdclass": {"build_ext": BuildOrWarn},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }
