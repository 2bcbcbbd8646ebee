# Each target sets itself up: `make test` is all a fresh clone needs.
#   make PYTHON=python3.12 test                                       another interpreter (for a new .venv)
#   make WORKERS=8 test                                               processes that share the tests, a core each
#   make PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ...  PyTorch without CUDA, a smaller download
#   make gpu OUT=DIR ONLY=CASE UPSTREAM=DIR                           see benchmarks/README.md, "On a GPU"

PYTHON ?= python3
OUT ?= benchmarks/out
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

ifdef PIP_EXTRA_INDEX_URL
export PIP_EXTRA_INDEX_URL
endif

# On CPU runs glibc gives large freed blocks back to the kernel and takes them again, page fault by page fault, for
# the next tensor. These make it keep them: a training step of llamagen-tiny took 0.74 s instead of 0.84 s.
export MALLOC_TRIM_THRESHOLD_ := 100000000000
export MALLOC_MMAP_MAX_ := 0

.PHONY: demo test lint type gpu clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (PyTorch is a large download the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@FLASHAR=$(BIN)/flashar scripts/demo.sh

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

type: $(READY)
	@$(BIN)/mypy

gpu: $(READY)
	@PYTHON=$(BIN)/python benchmarks/run_gpu.sh $(OUT) $(if $(ONLY),--only '$(ONLY)') $(if $(UPSTREAM),--upstream $(UPSTREAM))

clean:
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
