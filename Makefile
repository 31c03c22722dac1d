# All commands of the project; `make` without a target lists them. Targets run in .venv, which is created from
# the locks (requirements*.lock) when it is first needed (VENV=... sets another folder, PYTHON=... the interpreter).
# Targets that only need Docker do not create it.

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
# dvc.yaml calls `python`: this makes it the environment's.
export PATH := $(abspath $(VENV))/bin:$(PATH)
# A terminal that is not UTF-8 gets `?` for what it cannot show; DVC would end in an error.
export PYTHONIOENCODING := $(patsubst x%,%,$(firstword $(subst :, ,x$(PYTHONIOENCODING)))):replace
# This file marks a complete environment. Its name depends on the locks and on the folder, so the environment is created
# again if a lock changed, the folder moved, or an earlier set-up was interrupted.
READY := $(VENV)/ready-$(shell { cat requirements*.lock; echo '$(CURDIR)'; } | cksum | cut -d ' ' -f 1)

.PHONY: .venv-demo help setup init run data test lint format ablation bench ui serve demo compile pipeline submit lock image up down secrets clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## create .venv from the locks (other targets do this when needed)

init: $(READY) ## write params.yaml for a data set; DATA=folder, table or s3://...; ARGS='--help' explains
	@$(PY) -m components init $(if $(DATA),'$(DATA)') $(ARGS)

run: $(READY) ## run the experiment of params.yaml; only steps affected by a change run again
	@$(PY) -m components data ensure
	@$(PY) -m dvc repro
	@$(PY) -m components summary

data: $(READY) ## pull or generate the raw input in data/, and check it against data.dvc
	@$(PY) -m components data ensure

test: $(READY) ## run the tests, one process per core; ARGS='-n 0 -k NAME' selects some, in one process
	@$(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY) ## check style, format and types, as CI does
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(READY) ## fix what ruff can fix
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

ablation: $(READY) ## compare ways to train and to read a model, over several seeds; takes hours; ARGS='--help' explains
	@$(PY) -m components ablation $(ARGS)

bench: $(READY) ## time training steps and decoding; ARGS=data: ingest and validate; ARGS=gpu: one GPU
	@$(PY) -m components bench $(ARGS)

ui: $(READY) ## open MLflow's page with the local runs (http://127.0.0.1:5000); ARGS='--port 5001' changes the port
	@MLFLOW_DISABLE_TELEMETRY=true PYTHONWARNINGS=ignore $(PY) -m mlflow ui --workers 1 \
	  --backend-store-uri sqlite:///mlflow.db $(ARGS)

serve: $(READY) ## answer requests with the champion (http://127.0.0.1:5002); ARGS='--model NAME/3 --port 8080'
	@$(PY) -m components serve $(ARGS)

# Gradio needs Pillow below 13, so the page has an environment of its own. It is created again if its pins changed.
DEMO := .venv-demo
DEMO_PINS := components/commands/demo/requirements-demo.txt
DEMO_READY := $(DEMO)/ready-$(shell cksum < $(DEMO_PINS) | cut -d ' ' -f 1)
demo: $(READY) $(DEMO_READY) ## show what `make serve` reads on a page (http://127.0.0.1:5003); ARGS='--images FOLDER'
	@$(PY) -m components demo --python $(DEMO)/bin/python $(ARGS)

.venv-demo: $(READY) $(DEMO_READY)

$(DEMO_READY):
	@echo "creating $(DEMO)"
	@$(PY) -m venv --clear $(DEMO)
	@$(DEMO)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes \
	  -r $(DEMO_PINS)
	@touch $@

compile: $(READY) ## write the Kubeflow pipeline's YAML; ARGS='--help' explains
	@$(PY) -m pipelines compile $(ARGS)

# pipeline and lock use the services of `make up`, unless the environment names another MLflow server.
pipeline: $(READY) ## run the Kubeflow pipeline here, one container per step; needs `make up`; ARGS='--help' explains
	@if [ -z "$${MLFLOW_TRACKING_URI:-}" ] && [ -e docker/services.env ]; then set -a; . docker/services.env; set +a; fi; \
	  $(PY) -m pipelines run $(ARGS)

submit: $(READY) ## submit the pipeline to a cluster; ARGS='--data-uri s3://... --wait'; ARGS='--help' explains
	@$(PY) -m pipelines submit $(ARGS)

lock: $(READY) ## write dvc.lock from a finished run of the pipeline; RUN=ID
	@if [ -z "$${MLFLOW_TRACKING_URI:-}" ] && [ -e docker/services.env ]; then set -a; . docker/services.env; set +a; fi; \
	  $(PY) -m pipelines lock --run '$(or $(RUN),$(error set RUN=ID to the id of the run))' $(ARGS)

# BASE=IMAGE sets the base image; WITHOUT_REGISTRY=1 builds the base from Debian's packages instead of pulling it.
# RECORD= (empty) does not record the size.
RECORD ?= results/images.md
image: ## build the container image; TARGET=cuda for GPUs; WITHOUT_REGISTRY=1 pulls no image
	@$(if $(WITHOUT_REGISTRY),docker/base $(BASE))
	@docker/build $(or $(TARGET),cpu) $(if $(RECORD),--record $(RECORD)) \
	  $(if $(or $(BASE),$(WITHOUT_REGISTRY)),--base $(or $(BASE),concord-base:bookworm)) $(ARGS)

up: ## start MLflow with PostgreSQL, and S3, in containers; WITHOUT_REGISTRY=1 builds their images
	@docker/services up

down: ## stop these services; ARGS=--volumes also deletes their data
	@docker/services down $(ARGS)

secrets: ## write docker/services.env with random secrets, if it is missing (`make up` does this too)
	@docker/services env

clean: ## remove training state and tool caches; keeps outputs, MLflow's runs and .venv
	rm -rf .checkpoints .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find components pipelines tests -name __pycache__ -prune -exec rm -rf {} +

# pip accepts only files whose hashes are in the locks, and resolves nothing. What has only a source archive is built by
# the locked setuptools. torch is the CPU build if pip is configured to find it, or else PyPI's, which on Linux needs the
# packages of the CUDA lock: a file with another hash is an error, and never a reason for PyPI's.
INSTALL := $(PY) -m pip install -qq --no-compile --no-deps
$(READY): export PIP_DISABLE_PIP_VERSION_CHECK := 1
$(READY):
	@'$(PYTHON)' -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "$(or $(PYTHON),PATH): no Python 3.11, 3.12 or 3.13 with venv. Install one, or set its path: make PYTHON=/path/to/python3.13" >&2; exit 1; }
	@echo "creating $(VENV) (takes some minutes)"
	@'$(PYTHON)' -m venv --clear '$(VENV)'
	@echo "1/2 the packages of the locks"
	@$(INSTALL) --require-hashes -r <(awk '/^[^ ]/ { on = /^setuptools==/ } on' requirements.lock)
	@$(INSTALL) --require-hashes -r requirements-cpu.lock 2> $(VENV)/torch.log \
	  || grep -q 'No matching distribution' $(VENV)/torch.log || { cat $(VENV)/torch.log >&2; exit 1; }
	@$(INSTALL) --require-hashes --no-build-isolation --use-pep517 -r requirements.lock -r requirements-dev.lock
	@$(PY) -c "from importlib.metadata import version; raise SystemExit('+cpu' not in version('torch'))" \
	  || $(INSTALL) --require-hashes -r requirements-cuda.lock
	@echo "2/2 this package"
	@$(INSTALL) --no-build-isolation -e .
	@$(PY) -m pip check
	@touch $@
