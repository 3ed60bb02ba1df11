# Everything a person types. `make` alone lists it.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
PORT ?= 5000

# make image: the name it gets, the engine that builds it, and what it is made from
, := ,
LABEL := org.opencontainers.image
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
REVISION = $(shell git describe --always --dirty --abbrev=40 --exclude '*' 2> /dev/null)
IMAGE ?= localhost/vitdc:$(VERSION)
ENGINE ?= $(firstword $(foreach engine,podman docker,$(if $(shell command -v $(engine)),$(engine))))
BASE_IMAGE ?=
PUSH_OPTIONS ?=
# certificates and a package index of your own, passed as secrets that leave nothing in the image
PACKAGE_CA ?= $(or $(SSL_CERT_FILE),$(PIP_CERT))
export PACKAGE_INDEX ?= $(or $(UV_DEFAULT_INDEX),$(UV_INDEX_URL),$(PIP_INDEX_URL))

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test test-slow test-services test-containers test-cluster image push study lint format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

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

# up to 4 files at a time
PYTEST := OMP_WAIT_POLICY=PASSIVE pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: setup  ## all tests that need nothing but this environment, without the slow ones
	$(PYTEST)

test-slow: setup  ## the tests that are long by nature: trainings of a notebook, processes in trouble
	$(PYTEST) -m slow

test-services: setup  ## MLflow on PostgreSQL and S3, used by processes and a browser (Debian's postgresql, chromium)
	OMP_WAIT_POLICY=PASSIVE pytest -m services tests/services

test-containers: setup  ## build the image and test it in real containers (root, podman)
	OMP_WAIT_POLICY=PASSIVE pytest -m containers tests/containers

test-cluster: setup  ## the way of k8s/README.md on a real cluster (KUBECONFIG, KF_PIPELINES_ENDPOINT, VITDC_IMAGE)
	OMP_WAIT_POLICY=PASSIVE pytest -m cluster tests/cluster

image:  ## build the container image (IMAGE=name BASE_IMAGE=name ENGINE=podman or docker)
	@test -n "$(ENGINE)" || { echo "make image needs podman or docker on the PATH" >&2; exit 2; }
	$(ENGINE) build --tag $(IMAGE) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
		--label $(LABEL).version=$(VERSION) $(if $(REVISION),--label $(LABEL).revision=$(REVISION)) \
		$(if $(PACKAGE_CA),--secret id=ca$(,)src=$(PACKAGE_CA)) \
		$(if $(PACKAGE_INDEX),--secret id=index$(,)env=PACKAGE_INDEX) .
	@$(ENGINE) image inspect $(IMAGE) \
		--format '$(IMAGE){{println}}id {{.Id}}{{println}}{{.Size}} bytes'

# The digest is the one that the registry gives: podman tells it of a push only, docker of an image.
push:  ## push the image IMAGE=registry/name:tag, and print the digest that `submit --image` takes
	@test -n "$(ENGINE)" || { echo "make push needs podman or docker on the PATH" >&2; exit 2; }
	@set -e; name=$$(sed 's|:[^:/]*$$||' <<< '$(IMAGE)'); \
	if [[ '$(notdir $(ENGINE))' == podman* ]]; then \
		digest=$$(mktemp); trap 'rm -f "$$digest"' EXIT; \
		$(ENGINE) push --digestfile "$$digest" $(PUSH_OPTIONS) $(IMAGE); \
		echo "$$name@$$(< "$$digest")"; \
	else \
		$(ENGINE) push $(PUSH_OPTIONS) $(IMAGE); \
		$(ENGINE) image inspect $(IMAGE) \
			--format '{{range .RepoDigests}}{{println .}}{{end}}' | grep "^$$name@"; \
	fi

study: setup  ## do the clustering loss and the rounds help? (STUDY="--seeds 10 --datasets digits fashion"; resumable, hours)
	python benchmarks/study.py --output outputs/study $(STUDY)

lint: setup  ## ruff and mypy, as in pre-commit and CI
	ruff check .
	ruff format --check .
	mypy

format: setup  ## let ruff repair what it can
	ruff check --fix .
	ruff format .

lock: pyproject.toml  ## resolve the dependencies again; the image has a lock of its own
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --upgrade \
		--group dev --extra onnx pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade \
		--constraints requirements.lock pyproject.toml --output-file requirements-image.lock

# What people have typed and what MLflow has been told cannot be made again.
KEPT := ! -name '*.annotations.json' ! -path '.kfp/containers/mlflow.db*' \
	! -path '.kfp/containers/mlartifacts/*'
clean:  ## remove results and unfinished work, but no data, MLflow runs, names of clusters or DVC cache
	rm -rf results .scratch
	@for folder in outputs .kfp; do \
		test ! -d $$folder || find $$folder ! -type d $(KEPT) -delete; \
		test ! -d $$folder || find $$folder -depth -type d -empty -delete; \
	done
