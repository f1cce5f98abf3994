# Two commands are enough: `make repro` runs the pipeline, `make test` the tests.
# Each first makes .venv and installs the pinned dependencies, if that has not been done.
PYTHON ?= python3
# Not MLflow's 5000, which AirPlay takes on macOS.
PORT ?= 5050

# DVC's stages find their `python` in it. The recipes name it by path: make on macOS does not look there.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: repro test commands lint ui best champion sync bench lessons clean

# The programs in .venv name its folder: where that was moved, or its Python is gone, .venv is made anew.
ifneq ($(shell test -f .venv/installed && . .venv/bin/activate && \
	{ test "$$VIRTUAL_ENV" -ef .venv && test -x .venv/bin/python || echo moved; }),)
.PHONY: .venv/installed
CLEAR := --clear
endif

repro: .venv/installed
	.venv/bin/python -m dvc repro

test: .venv/dev
	.venv/bin/python -m pytest

# Run the commands of README and the documents, with short trainings.
commands: .venv/dev
	.venv/bin/python -m pytest --dist worksteal tests/commands.py

lint: .venv/dev
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy

# MLflow's UI with one worker and no job runner: a fifth of the memory and half of the start-up time.
# Where the port is in use, MLflow would end as if all were well.
ui: .venv/installed
	@.venv/bin/python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT)))' 2>/dev/null || \
		{ echo 'error: port $(PORT) is in use or reserved; name another one: make ui PORT=5051' >&2; exit 1; }
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/python -m mlflow ui --workers 1 --port $(PORT)

# The models of the MLflow store, the best on the test split first, and the command that restores it.
best: .venv/installed
	.venv/bin/python -m minilm.tracking.ranking

# The best model becomes `models:/minilm@champion` in MLflow's registry.
champion: .venv/installed
	.venv/bin/python -m minilm.tracking.ranking --champion

# Add to the MLflow store what it lacks of the models in the workspace and in DVC's experiments.
sync: .venv/installed
	.venv/bin/python -m minilm.tracking.sync

# To compare with nanoGPT and on Tiny Shakespeare: make bench NANOGPT=path/to/checkout SHAKESPEARE=input.txt
bench: .venv/installed
	.venv/bin/python -m benchmarks.bench $(if $(NANOGPT),--nanogpt "$(NANOGPT)") $(if $(SHAKESPEARE),--shakespeare "$(SHAKESPEARE)")

# Run the lessons' experiments, write their tables and plots; make lessons STEPS=2 only tries everything out.
lessons: .venv/installed
	OMP_NUM_THREADS=1 .venv/bin/python -m docs.lessons.run $(if $(STEPS),--steps $(STEPS))

# Remove the checkpoints of unfinished trainings and what killed processes left, while no training runs.
clean:
	@du -shc .checkpoints .unfinished-* */.unfinished-* 2>/dev/null || true
	rm -rf .checkpoints .unfinished-* */.unfinished-* params.unfinished

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MiniLM needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(CLEAR) .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/installed
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
