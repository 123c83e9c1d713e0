# `make demo` and `make test` need nothing but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VERL := .venv-verl
export HF_HUB_OFFLINE := 1

.PHONY: demo test check verl-test clean

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

# verl, Ray and TransferQueue are as large as all the rest: a venv of their own.
verl-test: $(VERL)/.ready
	$(VERL)/bin/python -m lambda_grpo.engines.verl_check --ray
	$(VERL)/bin/pytest tests/test_verl_engine.py

clean:
	rm -rf $(VENV) $(VERL)

# HF_HUB_OFFLINE is for the tests; `lambda-grpo` itself downloads what it is told to.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch --editable '.[dev]'
	touch $@

$(VERL)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --quiet --constraint constraints.txt torch --editable '.[verl]' pytest hypothesis
	touch $@
