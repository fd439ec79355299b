PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PACKAGES := import site; print(site.getsitepackages()[0])

.PHONY: quickstart test test-adapters lint docs nano clean

quickstart: $(INSTALLED)  ## train and compare everything on the embedded model and data; ARGS="--seed 1 --overwrite"
	$(BIN)/r1ranker quickstart $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-adapters: .venv-adapters/installed  ## adapters, and clients of `r1ranker serve`, with the real libraries
	.venv-adapters/bin/python -m pytest -q -W default tests/adapters tests/clients

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(INSTALLED)  ## the reference from the code, the pages of results from their rows, and the site in runs/site
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m r1ranker.cli.reference docs/reference/commands.md
	$(BIN)/r1ranker reproduce report --out results --pages docs/results
	$(BIN)/mkdocs build --strict

nano: $(INSTALLED)  ## rebuild the embedded model
	$(BIN)/r1ranker warmstart nano --overwrite
	rm -rf src/r1ranker/nano
	cp -r runs/nano/model src/r1ranker/nano

# torch first and pinned: an open range may pull gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing torch and the package into .venv: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The libraries that adapters are for: beside .venv, which it reads, since some want other versions of what stands there.
.venv-adapters/installed: $(INSTALLED) constraints-adapters.txt
	$(PYTHON) -m venv .venv-adapters
	printf '%s\n' '$(CURDIR)/src' "$$($(BIN)/python -c '$(PACKAGES)')" \
		> "$$(.venv-adapters/bin/python -c '$(PACKAGES)')/base.pth"
	.venv-adapters/bin/pip install --quiet --no-deps --requirement constraints-adapters.txt
	touch $@

clean:
	rm -rf .venv .venv-adapters runs
