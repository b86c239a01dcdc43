# make quickstart: from nothing to a trained network and its pictures.
# make test: all tests but the slow ones, in two passes. The first compiles without optimization, because most tests
# compile more than they compute. The second runs the numerical core (layers, PyTorch twins, losses, collectives) compiled
# as it is for users.
# make test-slow: whole runs killed, resumed and in several processes, and larger networks, in the same two passes.
PYTHON ?= python3
BIN = .venv/bin
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow lint clean

quickstart: .venv/.installed
	$(BIN)/alexnet train --config configs/quickstart.py
	@echo
	@echo 'To use the commands of the README in this shell, run: source .venv/bin/activate'

test: .venv/.installed-dev
	$(PYTEST) -m "not slow and not as_shipped and not real_data"
	ALEXNET_JAX_TESTS=shipped $(PYTEST) -m "not slow and as_shipped and not real_data"

test-slow: .venv/.installed-dev
	$(PYTEST) -m "slow and not as_shipped and not real_data"
	ALEXNET_JAX_TESTS=shipped $(PYTEST) -m "slow and as_shipped and not real_data"

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "alexnet_jax needs Python 3.11 to 3.13")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/.installed: .venv/bin/python pyproject.toml requirements.txt
	$(INSTALL) -e .
	touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml requirements.txt
	$(INSTALL) -e '.[dev]'
	touch .venv/.installed $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
