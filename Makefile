# Each target sets up all that it needs in .venv (hosts: .venv-hosts), from Python and make alone.
PYTHON ?= python3
VENV ?= .venv
HOSTS ?= .venv-hosts
RUN = $(VENV)/bin/python
INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP = $(RUN) $(INSTALL)
EXTRAS_demo = demo
EXTRAS_test = demo,test
EXTRAS_bench = bench,contenders
EXTRAS_study = examples
EXTRAS_docs = docs
SITE = build/site
RESULTS = fastadam-bench
GPU_RESULTS = fastadam-gpu
LIMIT = 600
PYTHONS = python3.10 python3.11 python3.12 python3.13
TORCH_PYTHON = python3.11

.PHONY: demo test test-hosts test-pythons docs bench bench-readme study gpu-day clean

demo: $(VENV)/ready-demo
	$(RUN) -m fastadam demo

# Tests run in as many processes as there are cores, and threads of each that wait for work leave the cores to the others.
test test-hosts: export OMP_WAIT_POLICY = passive
test test-hosts: export OPENBLAS_THREAD_TIMEOUT = 4

test: $(VENV)/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest --numprocesses auto --dist loadgroup

# The libraries that run fastadam.torch, each with a tiny model: docs/hosts.md.
test-hosts: $(HOSTS)/ready
	$(HOSTS)/bin/python -m pytest --numprocesses auto --dist worksteal tests/hosts

# Wheel and sdist, each in a clean environment of each of PYTHONS that is found; the extra `torch` on TORCH_PYTHON alone,
# because it is large. CONTRIBUTING.md.
test-pythons:
	$(PYTHON) tests/clean_installs.py $(if $(TORCH_PYTHON),--torch $(TORCH_PYTHON)) $(PYTHONS)

# The site, build/site/index.html. A warning, a link inside that leads nowhere among them, is an error.
docs: $(VENV)/ready-docs
	$(RUN) -m sphinx --fresh-env --nitpicky --fail-on-warning --quiet --builder html docs $(SITE)

# The quick suite: tables, pictures and one HTML page.
bench: $(VENV)/ready-bench
	$(RUN) -m fastadam bench --save $(RESULTS)

# The full suite, with DeepSpeed; then README's tables, and tables and pictures of docs/, from the run that it saves.
# About twenty minutes on two cores.
bench-readme: $(VENV)/ready-bench $(VENV)/ready-deepspeed
	$(RUN) -m fastadam bench --full --save $(RESULTS)
	cp $(RESULTS)/benchmark.json docs/benchmark.json
	$(RUN) docs/publish.py

# What storage formats do to training; then the tables and curves of docs/. About ten minutes on two cores.
study: $(VENV)/ready-study $(VENV)/ready-bench
	$(RUN) examples/storage_study.py --docs
	$(RUN) docs/publish.py

# Tests and times on a GPU, with the torch, CuPy, Numba and pytest of PYTHON: nothing is installed or downloaded. It takes
# LIMIT seconds at most; tables of docs/gpu.md are made of its gpu.json, copied to docs/.
gpu-day:
	$(PYTHON) bench/gpu/day.py --save $(GPU_RESULTS) --limit $(LIMIT)

# Its other dependencies are there; py-cpuinfo, which it asks for, would overwrite that of pytest-benchmark.
$(VENV)/ready-deepspeed: constraints.txt | $(VENV)/ready-bench
	$(PIP) ninja einops hjson msgpack tqdm
	DS_BUILD_OPS=0 $(PIP) --no-deps --no-build-isolation deepspeed
	touch $@

$(VENV)/ready-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[$(EXTRAS_$*)]'
	touch $@

$(HOSTS)/ready: tests/hosts/requirements.txt pyproject.toml constraints.txt | $(HOSTS)/bin/python
	$(HOSTS)/bin/python $(INSTALL) --no-deps --requirement tests/hosts/requirements.txt
	DS_BUILD_OPS=0 $(HOSTS)/bin/python $(INSTALL) --no-deps --no-build-isolation deepspeed --editable .
	touch $@

$(VENV)/bin/python $(HOSTS)/bin/python:
	$(PYTHON) -m venv $(@:/bin/python=)

clean:
	rm -rf $(VENV) $(HOSTS) build dist *.egg-info
