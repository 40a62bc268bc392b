"""Build the distribution `cdgen-kernels`: the package `cdgen_kernels`, and the C++ extension if possible."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_extension import extension

setup(packages=find_packages(), package_data={"": ["py.typed"]}, **extension())
