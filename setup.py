"""Build the distribution `cdgen`: the packages `cdgen` and `cdgen_kernels`, and the C++ extension if possible."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "kernels"))
from build_extension import extension

setup(
    packages=find_packages(include=["cdgen", "cdgen.*"]) + find_packages("kernels"),
    # The folder `kernels` is not a package: PyPI has a package of that name.
    package_dir={"cdgen": "cdgen", "cdgen_kernels": "kernels/cdgen_kernels"},
    # package_data names all files; otherwise setuptools would warn that the folder of templates is not a package.
    include_package_data=False,
    package_data={"": ["py.typed", "*.toml", "*.txt", "*.css", "*.js", "templates/*.html"]},
    **extension(),
)
