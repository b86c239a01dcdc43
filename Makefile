# make quickstart: from nothing to a trained network and its pictures. make test: the whole suite, compiled in haste but for
# its numerical core, which is compiled as for users: layers, twins in PyTorch, sums, losses, collectives, a resumed run.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: quickstart test lint clean

quickstart: .venv/.installed
	$(BIN)/python -m alexnet_jax.main --config configs/quickstart.py

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not as_shipped"
	ALEXNET_JAX_TESTS=shipped $(BIN)/python -m pytest -n auto --dist worksteal -m as_shipped

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("alexnet_jax needs Python 3.11 or newer") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.installed-dev: .venv/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
