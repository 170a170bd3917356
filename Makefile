# `make demo` and `make test` work from a fresh clone: each installs what it needs into .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REV ?= HEAD
MODELS := sample_models

.PHONY: demo test check matrix lint bench bench-against ablation format models clean help

help:
	@echo "make demo    install, and run the main job on a sample model"
	@echo "make test    install, and run the tests"
	@echo "make check   all that CI runs: linters, types, tests"
	@echo "make matrix  the tests with three versions of torch on each Python at hand: docs/versions.md"
	@echo "             (ARGS='--python 3.12 --torch oldest --keep': one of them, kept for the next run)"
	@echo "make lint    ruff and mypy"
	@echo "make bench   jaccli and its peers on 23 networks (an hour or two; NAMES and flags: benchmarks/README.md)"
	@echo "make bench-against REV=main   this tree and an earlier one in turns (NAMES, ARGS='--threads 1')"
	@echo "make ablation   what each part of the engine brings, by leaving it out (two or three hours; NAMES, ARGS)"
	@echo "make models  build the sample models again"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation -e '.[all]' pytest pytest-xdist hypothesis jaxtyping beartype ruff mypy
	touch $(STAMP)

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh sample_models/demo.sh

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)
	.ci/run

matrix: $(STAMP)
	$(BIN)/python tools/matrix.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

bench-against: $(STAMP)
	$(BIN)/python benchmarks/against.py $(REV) $(NAMES) $(ARGS)

ablation: $(STAMP)
	$(BIN)/python benchmarks/ablate.py $(NAMES) $(ARGS)

models: $(STAMP)
	$(BIN)/python $(MODELS)/build.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
