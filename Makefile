# The one vocabulary: `make` alone prints it. Everything runs in .venv, which the first target that needs it makes from
# requirements.lock (VENV=... puts it elsewhere, PYTHON=... names the interpreter), but for what needs Docker alone.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

# The newest supported Python that can create environments; empty if there is none. Keep in step with pyproject.toml.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
  "$$python" -c '$(SUPPORTED)' 2>/dev/null && { command -v "$$python"; break; }; done)
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
VENV ?= .venv
PY := $(VENV)/bin/python
# dvc.yaml says `python`, as everybody does; that is the environment's.
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Found again under this name only where the lock and the place are the same: a changed lock, a moved folder or a set-up
# that was broken off makes the environment anew.
READY := $(VENV)/ready-$(shell { cat requirements.lock; echo '$(CURDIR)'; } | cksum | cut -d ' ' -f 1)

.PHONY: help setup run data test lint format ablation bench ui compile pipeline submit lock image up down secrets clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv from requirements.lock (every other target does it when it is due)

run: $(READY) ## run the experiment that params.yaml describes; only what changed runs again
	@$(PY) -m components data ensure
	@$(PY) -m dvc repro
	@$(PY) -m components summary

data: $(READY) ## pull or make the raw input in data/, and check it against data.dvc
	@$(PY) -m components data ensure

test: $(READY) ## run the tests, a process a core; ARGS='-n 0 -k words' chooses some, in one
	@$(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY) ## check style, format and types, as CI does
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(READY) ## mend what ruff can mend
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

ablation: $(READY) ## SFT continued, GRPO with MAE reward, CCC-GRPO from one warm start; ARGS='--help' explains
	@$(PY) -m components ablation $(ARGS)

bench: $(READY) ## one GRPO step against TRL's stock trainer, timed; ARGS=data: ingest and validate against a bare loop
	@$(PY) -m components bench $(ARGS)

ui: $(READY) ## open MLflow on what was run (http://127.0.0.1:5000); ARGS='--port 5001' and the like
	@MLFLOW_DISABLE_TELEMETRY=true PYTHONWARNINGS=ignore $(PY) -m mlflow ui --workers 1 \
	  --backend-store-uri sqlite:///mlflow.db $(ARGS)

compile: $(READY) ## write the Kubeflow pipeline's YAML; ARGS='--help' explains
	@$(PY) -m pipelines compile $(ARGS)

# The services of `make up` are its own, unless the environment names an MLflow.
pipeline: $(READY) ## run the Kubeflow pipeline here, a container a step, on the services of `make up`; ARGS='--retries 1'
	@if [ -z "$${MLFLOW_TRACKING_URI:-}" ] && [ -e docker/services.env ]; then set -a; . docker/services.env; set +a; fi; \
	  $(PY) -m pipelines run $(ARGS)

submit: $(READY) ## run it on a cluster; ARGS='--data-uri s3://... --wait', and --help explains
	@$(PY) -m pipelines submit $(ARGS)

lock: $(READY) ## write dvc.lock from a finished run of the pipeline; RUN=its id
	@if [ -z "$${MLFLOW_TRACKING_URI:-}" ] && [ -e docker/services.env ]; then set -a; . docker/services.env; set +a; fi; \
	  $(PY) -m pipelines lock --run '$(or $(RUN),$(error RUN=ID names the run))' $(ARGS)

# BASE=IMAGE is what it stands on; WITHOUT_REGISTRY=1 makes that from Debian's packages instead of pulling it. RECORD= keeps
# no record.
RECORD ?= results/images.md
image: ## build the container image; TARGET=cuda for GPUs, WITHOUT_REGISTRY=1 without pulling anything
	@$(if $(WITHOUT_REGISTRY),docker/base $(BASE))
	@docker/build $(or $(TARGET),cpu) $(if $(RECORD),--record $(RECORD)) \
	  $(if $(or $(BASE),$(WITHOUT_REGISTRY)),--base $(or $(BASE),concord-base:bookworm)) $(ARGS)

up: ## start MLflow on PostgreSQL, and S3, in containers; WITHOUT_REGISTRY=1 builds all of them
	@docker/services up

down: ## stop them; ARGS=--volumes forgets what they hold
	@docker/services down $(ARGS)

secrets: ## write docker/services.env with random secrets (`make up` does it when it is missing)
	@docker/services env

clean: ## remove training state and caches of tools; outputs, MLflow's runs and .venv stay
	rm -rf .checkpoints .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find components pipelines tests -name __pycache__ -prune -exec rm -rf {} +

# torch first, with its own needs: where there is CUDA they are more than the lock can name. Then the lock as it stands:
# resolving it would take a quarter of an hour.
$(READY): export PIP_DISABLE_PIP_VERSION_CHECK := 1
$(READY):
	@'$(PYTHON)' -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "$(or $(PYTHON),PATH): no Python 3.11, 3.12 or 3.13 with venv. Install one, or name it: make PYTHON=/path/to/python3.13" >&2; exit 1; }
	@echo "setting up $(VENV) (some minutes)"
	@'$(PYTHON)' -m venv --clear '$(VENV)'
	@echo "1/3 torch"
	@$(PY) -m pip install -qq --no-compile "$$(grep '^torch==' requirements.lock)" -c requirements.lock
	@echo "2/3 requirements.lock"
	@$(PY) -m pip install -qq --no-compile --no-deps -r requirements.lock
	@echo "3/3 this package"
	@$(PY) -m pip install -qq --no-compile --no-deps --no-build-isolation -e .
	@$(PY) -m pip check
	@touch $@
