# Every target sets up what it needs in .venv; nothing outside this folder is touched.
#   make PYTHON=/path/to/python3 ...   another Python (3.11 or later)
#   make JOBS=8 test                   more test workers

VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 2
export PYTHON

.PHONY: help setup demo test test-slow lint types links docs clean

help:
	@echo "make demo       compile, run and measure the two shipped models; writes an HTML report"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow tests"
	@echo "make lint       ruff"
	@echo "make types      pyright"
	@echo "make docs       regenerate the pages of docs/ that come from the code"
	@echo "make links      complete .typing/ after a file was added to omnic/"
	@echo "make clean      remove caches and build outputs, keep .venv"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py
	@.ci/venv

demo: setup
	$(PY) bench/demo.py

test: setup
	$(PY) -m pytest -n $(JOBS) -q

test-slow: setup
	$(PY) -m pytest -q -m slow

lint: setup
	$(PY) -m ruff check .
	$(PY) .typing/link.py --check

types: setup
	$(PY) -m pyright -p .typing --pythonpath $(PY)

docs: setup
	$(PY) docs/generate.py
	$(PY) -m omnic.spec.reference

links: setup
	$(PY) .typing/link.py

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
