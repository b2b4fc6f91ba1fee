# make quickstart and make test need Python 3.11 or newer and a package registry, nothing else.
# PYTHON=/path/to/python chooses the interpreter, PFEDMMA_ENV=/path the shared environment.
.PHONY: help environment quickstart test check clean
.DEFAULT_GOAL := help

# Relative, so that the folder may have any name.
python := .venv/bin/python

help:
	@echo "make quickstart  install, then run the whole job on the embedded model and sample"
	@echo "make test        install if needed, then check the code and run all quick tests"
	@echo "make check       ruff and mypy only"
	@echo "make clean       remove .venv, caches and builds (not the shared environment)"

environment:
	@if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; \
	else set -- python3 python3.14 python3.13 python3.12 python3.11 python; fi; \
	for needs in "import ensurepip, venv" "pass"; do \
	  for candidate in "$$@"; do \
	    if "$$candidate" -c "$$needs; import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; \
	    then exec "$$candidate" tools/environment.py; fi; \
	  done; \
	done; \
	echo "pfedmma: no Python 3.11 or newer here ($$*); install one, or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

quickstart: environment
	@$(python) -m pfedmma_deploy.cli quickstart

check: environment
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy

test: check
	@$(python) -m pytest

clean:
	rm -rf .venv .venv.lock build dist pfedmma_deploy.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
