# `make demo` and `make test` need nothing but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file of tests is one worker's, so that its fixtures are made once; each worker computes on one core.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile
READY := $(VENV)/.ready
VERL := .venv-verl
export HF_HUB_OFFLINE := 1

export NO_MKDOCS_2_WARNING := 1

.PHONY: demo demo-llm test check docs package release-check verl-test clean

demo: $(READY)
	$(BIN)/lambda-grpo train

# A real language model learns: SmolLM2-135M from PyPI (93 MB), about 11 minutes on one core, 7 GB of memory.
demo-llm: $(READY)
	$(BIN)/lambda-grpo train --config demo-llm

test: $(READY)
	$(PYTEST) -m "not slow" --durations=10

check: $(READY) docs package
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -m slow --durations=10
	$(BIN)/python benchmarks/tree.py
	$(BIN)/python benchmarks/overhead.py --quick
	$(BIN)/python benchmarks/scale.py --quick

# The documentation in site/; any warning is an error.
docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet

# The wheel and the source archive in dist/, their contents, and a clean install of the wheel.
package: $(READY)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python tests/support/check_package.py dist

# Before a release: each extra in an empty environment of its own, and there a script for TRL with two names swapped.
release-check: docs package verl-test
	$(BIN)/python tests/support/check_package.py dist train tasks gguf docs dev

# verl, Ray and TransferQueue are as large as all the rest, and Hydra wants an older ANTLR than math-verify: a venv of their own.
verl-test: $(VERL)/.ready
	$(VERL)/bin/python -m lambda_grpo.engines.verl.check --ray
	$(VERL)/bin/pytest tests/engines/test_verl_engine.py

clean:
	rm -rf $(VENV) $(VERL) dist site

# HF_HUB_OFFLINE is for the tests; `lambda-grpo` itself downloads what it is told to.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch --editable '.[dev]'
	touch $@

$(VERL)/.ready: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --quiet --constraint constraints-verl.txt torch --editable '.[verl]' pytest hypothesis
	touch $@
