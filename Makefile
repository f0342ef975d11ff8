# `make` alone prints this help.
#
# demo and test make an environment of their own in .venv from the versions in constraints.txt, once.
# pip is told of mirrors, proxies and folders of wheels by its own PIP_ variables.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
VERSIONS ?= constraints.txt
RUN = $(VENV)/bin/python
# The second variable is for packages that are built: newer pips do not read the first one there.
VERSIONED = PIP_CONSTRAINT=$(abspath $(VERSIONS)) PIP_BUILD_CONSTRAINT=$(abspath $(VERSIONS)) \
	PIP_DISABLE_PIP_VERSION_CHECK=1
COMPILE = $(RUN) -m uv pip compile pyproject.toml --quiet --extra dev
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test setup check test-slow test-faults test-newest test-oldest test-wheel \
	constraints bench docs

help: ## Print this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/demo.done ## Draw a first picture into demo/, after installing what that needs
	@$(VENV)/bin/opensana generate "a red apple" --output demo/

test: $(VENV)/dev.done ## The tests, with the flags in PYTEST: CPU, no network, a few minutes
	$(RUN) -m pytest $(PYTEST)

setup: $(VENV)/dev.done ## Install what the other commands need into .venv

# dev holds all that demo needs.
$(VENV)/%.done: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "opensana needs Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV), once; this takes some minutes" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(VERSIONED) $(RUN) -m pip install --quiet --editable '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(VENV)/demo.done)

check: $(VENV)/dev.done ## Lint, format, types and the architecture guards
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)
	$(RUN) -m pytest -q tests/test_architecture.py

test-slow: $(VENV)/dev.done ## The tests and the slow ones: crash and resume, whole trainings
	$(RUN) -m pytest -m "not faults"

test-faults: $(VENV)/dev.done ## Training under faults: dozens of kills, a long run (20 minutes)
	$(RUN) -m pytest -s -m "slow or faults" tests/train/test_faults.py \
	tests/train/test_interruption.py tests/train/test_parallel.py

test-newest: RESOLUTION = highest
test-oldest: RESOLUTION = lowest-direct
test-newest: ## The tests with the newest versions that pyproject.toml allows, torch aside
test-oldest: ## ... with the oldest
test-newest test-oldest: test-%: $(VENV)/dev.done
	rm -rf .venv-$* && mkdir .venv-$*
	grep ^torch== constraints.txt > .venv-$*/torch.txt
	$(COMPILE) --resolution $(RESOLUTION) --constraints .venv-$*/torch.txt -o .venv-$*/versions.txt
	$(MAKE) test VENV=.venv-$* VERSIONS=.venv-$*/versions.txt

test-wheel: $(VENV)/dev.done ## Build both archives; install the wheel elsewhere and draw with it
	rm -rf dist
	$(VERSIONED) $(RUN) -m build --outdir dist
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(RUN) -m venv "$$folder/venv" \
	&& $(VERSIONED) "$$folder/venv/bin/python" -m pip install --quiet "$$(echo dist/*.whl)[demo]" \
	&& cd "$$folder" && venv/bin/opensana generate "a red apple" --output apple.png

constraints: $(VENV)/dev.done ## Write constraints.txt anew: the newest versions that fit
	$(COMPILE) --universal --upgrade --custom-compile-command 'make constraints' -o constraints.txt

bench: $(VENV)/demo.done ## Time one picture as a user sees it, from the command to the file
	@folder=$$(mktemp -d) && $(RUN) -m opensana.cli generate "a red apple" -o $$folder/ \
	&& time $(RUN) -m opensana.cli generate "a red apple" -o $$folder/

docs: $(VENV)/dev.done ## Write docs/cli.md anew from --help
	$(RUN) -m docs.cli > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md
