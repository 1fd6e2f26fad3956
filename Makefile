# `make help` lists the targets. Each target does all the set-up it needs on a fresh machine.
#   EXTRA="name=value …"  settings for any reproduce- target, e.g. EXTRA="images=64 seed=1"
#   LAUNCHER=slurm        its cells as an array of Slurm's jobs; joblib: in several processes here
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
UV ?= $(shell command -v uv || echo .uv/bin/uv)
RUN := .venv/bin/python
EXTRA ?=
LAUNCHER ?=

TABLES := $(sort $(basename $(notdir $(wildcard conf/table/*.yaml conf/figure/*.yaml))))

.PHONY: help setup test lint accuracy bench gpu estimate report docs status clean clean-cache train-photos reproduce-all
.PHONY: $(TABLES:%=reproduce-%) $(TABLES:%=submit-%) $(TABLES:%=aggregate-%)

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 20
	@for table in $(TABLES); do printf 'reproduce-%s\t%s\n' $$table "$$(sed -nE 's/^title: "(.*)"/\1/p' conf/*/$$table.yaml)"; done | expand -t 20
	@printf 'submit-table1\tthe same, and each of the others, left to Slurm; a dependent job makes it\n' | expand -t 20
	@printf 'aggregate-table1\tthe same, and each of the others, from the disk alone; nothing is run\n' | expand -t 20

setup: .venv/synced ## install everything into .venv with uv

.venv/synced: pyproject.toml uv.lock
	@test -x "$(UV)" || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv; }
	$(UV) sync --locked --quiet --python $(PYTHON)
	@touch $@

.venv/networks: .venv/synced # networks and photographs that tests read, for nothing else
	$(UV) sync --locked --quiet --all-groups --python $(PYTHON)
	@touch $@

.venv/docs: .venv/synced # what builds the documentation; what other groups installed stays
	$(UV) sync --locked --quiet --inexact --group docs --python $(PYTHON)
	@touch $@

test: lint .venv/networks ## lint, then run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile

lint: setup ## ruff, mypy and the contract of imports
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: setup ## time the IR attack against the limit of this device, to outputs/bench.json
	$(RUN) -m irattack bench $(EXTRA)

gpu: setup ## on a machine with a GPU, in ten minutes: what it proves and how fast it is, to outputs/gpu.json
	$(RUN) -m irattack gpu $(EXTRA)

estimate: setup ## hours and disk that each table and figure takes on this device at full scale
	$(RUN) -m irattack estimate $(EXTRA)

accuracy: setup ## each network's accuracy on the benchmark's images, before anything is attacked
	$(RUN) -m irattack accuracy $(LAUNCHER:%=hydra/launcher=%) $(EXTRA)

report: setup ## one page of all that is on the disk, to outputs/<benchmark>/report/index.html
	$(RUN) -m irattack report $(EXTRA)

docs: .venv/docs ## the documentation as pages that open from the disk, to site/index.html
	$(RUN) -m scripts.docs

status: setup ## what of every table and figure is done, in Slurm's queue or broken, and its size
	$(RUN) -m irattack status $(EXTRA)

clean-cache: setup ## remove what no table or figure needs with these settings
	$(RUN) -m irattack clean $(EXTRA)

clean: ## remove all results (outputs) and caches; .venv stays
	rm -rf outputs site .cache .mypy_cache .ruff_cache .pytest_cache

train-photos: setup ## retrain the networks of benchmark=photos and report their accuracy
	$(RUN) -m scripts.train_photos $(EXTRA)

$(TABLES:%=reproduce-%): reproduce-%: setup
	$(RUN) -m irattack reproduce $* $(LAUNCHER:%=hydra/launcher=%) $(EXTRA)

$(TABLES:%=submit-%): submit-%: setup
	$(RUN) -m irattack submit $* $(LAUNCHER:%=hydra/launcher=%) $(EXTRA)

$(TABLES:%=aggregate-%): aggregate-%: setup
	$(RUN) -m irattack aggregate $* $(EXTRA)

reproduce-all: $(patsubst %,reproduce-%,$(filter-out tf32,$(TABLES))) ## every table and figure, but the one of GPUs alone
