# `make` alone prints this help.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup check test test-slow test-faults bench docs demo

help: ## Print this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Make .venv with everything that tests and demo need
	python3 -m venv .venv
	.venv/bin/python -m pip install -e '.[test]'

check: ## Lint, format, types and the architecture guards
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright --pythonpath $(PYTHON)
	$(PYTHON) -m pytest -q tests/test_architecture.py

test: ## The tests: CPU, no network, a few minutes
	$(PYTHON) -m pytest

test-slow: ## The tests and the slow ones: crash and resume, whole trainings
	$(PYTHON) -m pytest -m "not faults"

test-faults: ## Training under faults: dozens of kills, lost processes, a long run (20 minutes)
	$(PYTHON) -m pytest -s -m "slow or faults" tests/train/test_faults.py \
	tests/train/test_interruption.py tests/train/test_parallel.py

bench: ## Time one picture as a user sees it, from the command to the file
	@folder=$$(mktemp -d) && $(PYTHON) -m opensana.cli generate "a red apple" -o $$folder/ \
	&& time $(PYTHON) -m opensana.cli generate "a red apple" -o $$folder/

docs: ## Write docs/cli.md anew from --help
	$(PYTHON) -m docs.cli > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md

demo: ## Draw a few pictures into demo/
	printf '%s\n' "a red apple" "a cat face" "a rocket" "a slice of pizza" \
	| $(PYTHON) -m opensana.cli generate --prompt-file - --seed 1 -o 'demo/{index}.png'
