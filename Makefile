PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: quickstart test lint nano clean

quickstart: $(INSTALLED)  ## train and compare everything on the embedded model and data; ARGS="--seed 1 --overwrite"
	$(BIN)/r1ranker quickstart $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/lint-imports
	$(BIN)/mypy

nano: $(INSTALLED)  ## rebuild the embedded model
	$(BIN)/r1ranker warmstart nano --overwrite
	rm -rf src/r1ranker/nano
	cp -r runs/nano/model src/r1ranker/nano

# torch first and pinned: an open range may pull gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs
