# `make demo` and `make check` need nothing but Python, gcc and git: they make .venv, install, and run.
PYTHON ?= python3
BIN := .venv/bin
# a process for each processor, of one thread each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: demo check test lint types imports fault parity install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# the main job on the embedded model: trains, evaluates, writes runs/demo/ and its features.html
demo: install
	$(BIN)/monosema demo --out runs/demo

# everything CI runs
check: lint types imports
	$(PYTEST)

# the fast suite
test: install
	$(PYTEST) -m "not slow and not fault and not browser"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

# real processes, killed
fault: install
	$(BIN)/python -m pytest -m fault

# side by side with the peers, each in an environment of its own
parity: install
	$(BIN)/python tests/parity/environments.py
	$(BIN)/python -m pytest tests/parity --run-parity

clean:
	rm -rf .venv .venv-* build dist runs
