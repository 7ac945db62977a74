# These commands set up all they need: a virtual environment in .venv with the CPU build of torch.
# For CUDA: make test TORCH=torch        (takes the newest CUDA build from the package index)
#
# make test        what CI runs, in six to eleven minutes on two cores
# make test-fast   while one works, in a minute or two: ruff, and those unit tests and tests of commands that are
#                  not marked `slow`. No mypy, no training, no program in a sandbox but a few.
# make smol-quick  makes a diffusion model of a causal model of 135M parameters (scripts/smol.py); smol: with more of all
# make tutorials   runs every command of docs/learn, and compares what it prints with the pages: some five minutes of one core
# make docs        builds the documentation as a site, build/docs/site, and checks it
# make dist        builds the wheel and the source, and tries the wheel in an empty environment
# make docs-serve  builds it and shows it at http://localhost:8000
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Modules are compiled once, not by each of the processes that tests begin.
export PYTHONDONTWRITEBYTECODE =
# Files of tests go to the workers in the order of their names: the long ones of tests/integration come first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: tour test test-fast check sandbox smol-quick smol bench tutorials docs docs-serve dist clean

tour: $(VENV)/.installed
	$(BIN)/remask tour

test: check sandbox
	$(PYTEST)

test-fast: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m "not slow" tests/unit tests/integration/test_commands.py

sandbox:
	@command -v bwrap > /dev/null || printf '%s\n' \
	  "bubblewrap is not installed: the sandbox's tests are skipped, and generated code (HumanEval, MBPP) cannot be graded." \
	  "Install it with: apt-get install bubblewrap   (or dnf install bubblewrap, conda install -c conda-forge bubblewrap)"

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md docs src scripts examples benchmarks
	$(BIN)/mypy

smol-quick: $(VENV)/.installed
	$(BIN)/python scripts/smol.py quick

smol: $(VENV)/.installed
	$(BIN)/python scripts/smol.py full

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench.py

tutorials: $(VENV)/.installed
	$(BIN)/python scripts/run_tutorials.py --check

# Any warning, dead link or public name without a page ends it.
docs: $(VENV)/.docs
	$(BIN)/python scripts/make_site.py
	$(BIN)/zensical build --strict -f build/docs/mkdocs.yml
	$(BIN)/python scripts/site_search.py build/docs/site
	$(BIN)/python scripts/check_site.py build/docs/site

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 -d build/docs/site 8000

# The wheel and the source, checked, and the wheel tried in an environment of its own.
dist:
	rm -rf dist build/tools
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install -q -c constraints.txt build twine cyclonedx-bom pip-licenses
	build/tools/bin/python -m build
	build/tools/bin/twine check --strict dist/*
	build/tools/bin/python scripts/check_dist.py

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Remask needs Python 3.11 or newer; try: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q '$(TORCH)'
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
