# make quickstart   set up, train a retriever and a ranker against each other, show what was gained
# make test         set up, run the tests
# make test-fast    the same without the slow ones, in less than two minutes
# make install      set up alone: .venv, idempotent
# make lint         ruff, and mypy on the package as it is installed
# make format       let ruff rewrite what it can
# make gpu          search and training steps on a GPU, and their speed: runs/gpu.md
# make attack       kills, full disks, bad values, hostile requests and damaged files: a table, in 20 minutes
# make bench        the measured comparisons in tests/benchmarks
# make clean        remove .venv and everything built
#
# Variables, for example `make test PYTHON=python3.13 VENV=.venv-313`:
VENV ?= .venv
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3 python,$(call new-enough,$(python))))
EXTRAS ?= cpu,quickstart,dev
# Installed before everything else, so that nothing draws in another build: TORCH=torch for the newest one.
TORCH ?= torch==2.13.0
# A constraints file: CONSTRAINTS=tests/constraints-lowest.txt for the oldest supported versions.
CONSTRAINTS ?=
# accelerate gives a process one thread unless told otherwise.
THREADS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Processes that run the tests.
JOBS ?= 2

new-enough = $(shell $(1) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(1))
constrained = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
offline = HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
launch = $(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(THREADS)

.PHONY: help install quickstart test test-fast gpu lint format bench attack clean FORCE
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(VENV)/installed

# The editable install is the path of this folder, so a new file is there at once; only new requirements, a package that
# pyproject.toml newly names, or another choice of the variables above, which the stamp holds, need another pass.
choice := extras=$(EXTRAS) torch=$(TORCH) constraints=$(CONSTRAINTS)
ifneq ($(choice),$(shell cat $(VENV)/installed 2>/dev/null))
$(VENV)/installed: FORCE
endif

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer with the venv module is needed and none was found:" \
		"install it, or name it with 'make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'." >&2; exit 1; fi
	@rm -f $@
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check $(constrained) "$(TORCH)"
	$(VENV)/bin/python -m pip install --disable-pip-version-check $(constrained) -e ".[$(EXTRAS)]"
	@echo '$(choice)' > $@

quickstart: install
	$(offline) $(launch) recipes/run.py recipes/quickstart.yaml --output_dir runs/quickstart

test: install
	$(offline) OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n $(JOBS) $(PYTEST_ARGS)

test-fast: install
	$(offline) OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n $(JOBS) -m "not slow" $(PYTEST_ARGS)

# GPU_TESTS=cpu: at toy size, without a GPU.
gpu: install
	HF_AR2_GPU_TESTS=$(GPU_TESTS) HF_AR2_GPU_COLLECTION=$(GPU_COLLECTION) HF_AR2_GPU_MODEL=$(GPU_MODEL) \
		HF_AR2_GPU_MINUTES=$(GPU_MINUTES) $(VENV)/bin/pytest tests/gpu -m gpu -rs -s $(PYTEST_ARGS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy -p hf_ar2

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# MINUTES=5: a part of it.
attack: install
	$(offline) $(VENV)/bin/python tests/attacks --minutes $(or $(MINUTES),20)

# Compares at length, with a command of its own, see recipes/RESULTS.md; the others are its parts.
longer := $(addprefix tests/benchmarks/,against_sentence_transformers.py rival.py comparison.py processor_budget.py)

bench: install
	@for script in $(filter-out $(longer),$(wildcard tests/benchmarks/*.py)); do echo "== $$script"; $(offline) $(VENV)/bin/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
