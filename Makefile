# Two commands are enough: `make repro` runs the pipeline, `make test` the tests.
# Each first makes .venv and installs the pinned dependencies, if that has not been done.
PYTHON ?= python3

# With .venv first on the PATH, `python` and `dvc` are the pinned ones, in the pipeline's stages too.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: repro test lint ui best champion deliver bench

repro: .venv/installed
	dvc repro

test: .venv/installed
	python -m pytest

lint: .venv/installed
	ruff format --check .
	ruff check .
	mypy

# MLflow's page with one worker and no job runner: a fifth of the memory and half of the start-up time.
ui: .venv/installed
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1

# The lab notebook's models, the best on the test text first, and the command that brings it back.
best: .venv/installed
	python -m minilm.best

# The best model on the champion's text becomes `models:/minilm@champion` in MLflow's registry.
champion: .venv/installed
	python -m minilm.champion

# What could not be told to MLflow before, since a server was down, say.
deliver: .venv/installed
	python -m minilm.deliver

# To compare with nanoGPT and on Tiny Shakespeare: make bench NANOGPT=path/to/checkout SHAKESPEARE=input.txt
bench: .venv/installed
	python -m benchmarks.bench $(if $(NANOGPT),--nanogpt "$(NANOGPT)") $(if $(SHAKESPEARE),--shakespeare "$(SHAKESPEARE)")

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MiniLM needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo 'export MLFLOW_DISABLE_TELEMETRY=true' >> .venv/bin/activate
	@touch .venv/installed
