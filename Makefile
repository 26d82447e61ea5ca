# The targets that people, the pre-commit hooks and CI call. They need bash, python3 (3.11 or newer) with pip, and util-linux.

PYTHON ?= python3
STAMP := .venv/.installed
# Should make itself be killed, the kernel tells the script, and the script stops what it started.
RUN := exec setpriv --pdeathsig TERM bash

.DEFAULT_GOAL := help
.PHONY: help setup demo serve pretrain test test-slow check clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(STAMP)  ## create .venv and install the project with pinned versions
	@echo ".venv is up to date"

$(STAMP): pyproject.toml constraints.txt platform/requirements.lock platform/local/setup.sh
	@$(RUN) platform/local/setup.sh $(PYTHON) $(STAMP)

demo: $(STAMP)  ## from annotations to a served mask on this machine: store, Ray, data, training, evaluation, serving
	@$(RUN) platform/local/demo.sh

serve: $(STAMP)  ## serve the model that the demo trained, until Ctrl-C
	@$(RUN) platform/local/serve.sh

pretrain: $(STAMP)  ## make the `tiny` checkpoint that ships with the package again (an hour and a half, by estimate)
	@$(RUN) platform/local/pretrain.sh

test: $(STAMP)  ## run the tests (ARGS="…" goes to pytest)
	@$(RUN) platform/local/test.sh $(ARGS)

test-slow: $(STAMP)  ## run the tests that take more than a minute each
	@$(RUN) platform/local/test.sh -m slow $(ARGS)

check: $(STAMP)  ## ruff, mypy, and all files that say what runs where
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/python -m jobs.validate platform jobs/configs serve/configs

clean:  ## remove what the targets made, except .venv
	rm -rf demo-output .local build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
