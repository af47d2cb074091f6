# Each target sets up all that it needs in .venv, from Python and make alone.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS_demo = demo
EXTRAS_test = demo,test
EXTRAS_bench = bench,contenders
EXTRAS_study = examples
RESULTS = fastadam-bench

.PHONY: demo test bench bench-readme study clean

demo: $(VENV)/ready-demo
	$(RUN) -m fastadam demo

test: $(VENV)/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest

# The quick suite, on record with pytest-benchmark; then its tables, pictures and page.
bench: $(VENV)/ready-bench
	mkdir -p $(RESULTS)
	$(RUN) -m pytest bench --benchmark-only --benchmark-json=$(RESULTS)/pytest.json --benchmark-columns=median,iqr,rounds
	$(RUN) -m fastadam bench --load $(RESULTS)/pytest.json --save $(RESULTS)

# The full suite, with DeepSpeed; then README's tables, and tables and pictures of docs/, from the run that it saves.
# About twenty minutes on two cores.
bench-readme: $(VENV)/ready-bench $(VENV)/ready-deepspeed
	$(RUN) -m fastadam bench --full --save $(RESULTS)
	cp $(RESULTS)/benchmark.json docs/benchmark.json
	$(RUN) -m fastadam.bench.publish docs/benchmark.json

# What storage formats do to training; writes tables and curves into docs/. About ten minutes on two cores.
study: $(VENV)/ready-study
	$(RUN) examples/storage_study.py --docs

# Its other dependencies are there; py-cpuinfo, which it asks for, would overwrite that of pytest-benchmark.
$(VENV)/ready-deepspeed: constraints.txt | $(VENV)/ready-bench
	$(PIP) ninja einops hjson msgpack psutil tqdm
	DS_BUILD_OPS=0 $(PIP) --no-deps --no-build-isolation deepspeed
	touch $@

$(VENV)/ready-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[$(EXTRAS_$*)]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info
