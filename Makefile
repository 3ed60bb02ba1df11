# Everything a person types. `make` alone lists it.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
PORT ?= 5000

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test lint format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## make .venv from requirements.lock (skipped when up to date)

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and f"Python 3.11 to 3.13 is needed, $(PYTHON) is {v[0]}.{v[1]}: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## the whole method on scikit-learn's digits, through DVC, and its summary
	dvc repro
	@echo
	@vitdc summary results
	@echo
	@echo "Open results/report.html for the pictures, or type 'make ui' for MLflow."

ui: setup  ## open the recorded runs in MLflow's web page, on this machine only
	@case "$${MLFLOW_TRACKING_URI:-}" in \
		http*) echo "The runs are at $$MLFLOW_TRACKING_URI";; \
		*) echo "MLflow starts; open http://127.0.0.1:$(PORT)/#/experiments/1/runs (Ctrl-C ends it)"; \
			MLFLOW_DISABLE_TELEMETRY=true mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
				--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}";; \
	esac

test: setup  ## all tests
	OMP_WAIT_POLICY=PASSIVE pytest

lint: setup  ## ruff and mypy, as in pre-commit and CI
	ruff check .
	ruff format --check .
	mypy

format: setup  ## let ruff repair what it can
	ruff check --fix .
	ruff format .

lock: pyproject.toml  ## resolve the dependencies again into requirements.lock
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --upgrade \
		--group dev pyproject.toml --output-file requirements.lock

clean:  ## remove results and unfinished work; data, MLflow runs and the DVC cache stay
	rm -rf outputs results .scratch
