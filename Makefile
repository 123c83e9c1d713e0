# `make demo` and `make test` need nothing but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_OFFLINE := 1

.PHONY: demo test check clean

demo: $(READY)
	$(BIN)/lambda-grpo train

test: $(READY)
	$(BIN)/pytest -m "not slow"

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -m slow
	$(BIN)/python benchmarks/tree.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/scale.py --quick

clean:
	rm -rf $(VENV)

# HF_HUB_OFFLINE is for the tests; `lambda-grpo` itself downloads what it is told to.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch --editable '.[dev]'
	touch $@
