# The short names people type. Everything is done by invoke tasks (tasks.py); `make help` lists what is here.
PYTHON ?= python3
VENV := .venv/bin
export PYTHONPATH :=

.DEFAULT_GOAL := help
.PHONY: help up down build shell doctor clean test test-gpu test-all lint venv dev

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: venv ## engine, image, workspace container, quick checks: everything, from nothing
	@$(VENV)/invoke up

down: venv ## stop the workspace container
	@$(VENV)/invoke down

build: venv ## build the image for this host
	@$(VENV)/invoke build

shell: venv ## a shell in the environment
	@$(VENV)/invoke shell

doctor: venv ## prove that this host works; findings with remedies
	@$(VENV)/invoke doctor

test: dev ## the project's own tests, then the validation suite in the container (below 15 minutes)
	@$(VENV)/python tests/run.py

test-all: dev ## `make test` and what takes longer
	@$(VENV)/python tests/run.py --all

test-gpu: venv ## the validation suite on a GPU, which is demanded (QUIET=1: no word where all is good, for cron)
	@$(VENV)/invoke test --gpu $(if $(QUIET),--quiet)

lint: dev ## ruff and mypy alone
	@$(VENV)/python tests/run.py --only lint

clean: venv ## show and remove what torchdock made for this user and clone
	@$(VENV)/invoke clean

venv:
	@PYTHONPATH=src $(PYTHON) -m torchdock.bootstrap

dev:
	@PYTHONPATH=src $(PYTHON) -m torchdock.bootstrap --dev
