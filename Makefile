# `make demo` and `make check` need nothing but Python, gcc and git: they make .venv, install, and run.
# `make demo` installs the library alone; the checks add the developer's tools.
PYTHON ?= python3
BIN := .venv/bin
# a process for each processor, of one thread each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: demo check test lint types imports fault parity bench install install-dev clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

install-dev: .venv/installed-dev

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# the main job on the embedded model: trains, evaluates, writes runs/demo/ and its features.html
demo: install
	$(BIN)/monosema demo --out runs/demo

# everything CI runs
check: lint types imports
	$(PYTEST)

# the fast suite
test: install-dev
	$(PYTEST) -m "not slow and not fault and not browser"

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install-dev
	$(BIN)/mypy

imports: install-dev
	$(BIN)/lint-imports

# real processes, killed: 100 runs in place of the 5 of `make check`
fault: install-dev
	FAULT_RUNS=100 $(BIN)/python -m pytest -m fault

# side by side with the peers, each in an environment of its own
parity: install-dev
	$(BIN)/python tests/parity/environments.py
	$(BIN)/python -m pytest tests/parity --run-parity

# every speed table of docs/benchmarks.md anew; on a machine that does nothing else
bench: install-dev
	$(BIN)/python tests/parity/environments.py
	$(BIN)/python tests/parity/environments.py --only sparsify
	$(BIN)/python benchmarks/step.py --write-docs step
	$(BIN)/python benchmarks/step.py --batch-size 4096 --d-in 768 --d-sae 24576 --write-docs step-large
	$(BIN)/python benchmarks/growth.py --write-docs
	$(BIN)/python benchmarks/end_to_end.py --write-docs
	$(BIN)/python benchmarks/revive.py --write-docs
	$(BIN)/python benchmarks/many.py --write-docs
	$(BIN)/python benchmarks/equal_tokens.py --write-docs
	$(BIN)/python benchmarks/cache.py --write-docs

clean:
	rm -rf .venv .venv-* build dist runs
