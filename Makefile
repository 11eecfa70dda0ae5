# Every target works in .venv, which the first one that needs it creates. PYTHON names the Python
# to create it with, JOBS the number of test processes, ARGS further arguments for pytest.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
BENCH ?= $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv lint types test demo bench format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## create .venv and install the package with its test tools, as constraints.txt pins them

# A stamp marks a whole install: a stale one is brought up to date, a missing one (a first install,
# or an interrupted one) means to start afresh.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no '$(PYTHON)' here; name a Python 3.10 or newer: make PYTHON=... $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: '$(PYTHON)' is $$($(PYTHON) --version 2>&1), Python 3.10 or newer is needed:" \
	    "make PYTHON=... $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "==> venv: install monai-segloss[test] into $(VENV)"
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	rm -f $@
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

lint: venv ## check style and format (ruff)
	@echo "==> lint: ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## check the types (mypy)
	@echo "==> types: mypy"
	$(BIN)/mypy

# One thread a process: several beside other busy processes wait for one another, and two can be
# ten times slower than one.
test: venv lint types ## lint, types, then the tests
	@echo "==> test: pytest, $(JOBS) processes of one thread"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

demo: venv ## run the demonstration on made-up data
	@echo "==> demo"
	$(BIN)/python -m monai_segloss demo

bench: venv ## run the benchmarks, or those that BENCH names
	@test -n "$(BENCH)" || { echo "error: no benchmark in benchmarks/" >&2; exit 1; }
	@set -e; for bench in $(BENCH); do echo "==> bench: $$bench"; $(BIN)/python $$bench; done

format: venv ## format the code and repair what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build products; .venv and the results of runs stay
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
