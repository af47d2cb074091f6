# Each target sets up all that it needs in .venv, from Python and make alone.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
EXTRAS_demo = demo
EXTRAS_test = demo,test,torch
EXTRAS_bench = bench,torch
EXTRAS_study = examples

.PHONY: demo test bench bench-readme study clean

demo: $(VENV)/ready-demo
	$(RUN) -m fastadam demo

test: $(VENV)/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest

bench: $(VENV)/ready-bench
	$(RUN) -m pytest bench --benchmark-only
	$(RUN) bench/report.py

# The same report, and its tables written into README.md.
bench-readme: $(VENV)/ready-bench
	$(RUN) bench/report.py --readme

# What storage formats do to training; writes tables and curves into docs/. About ten minutes on two cores.
study: $(VENV)/ready-study
	$(RUN) examples/storage_study.py --docs

$(VENV)/ready-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS_$*)]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info
