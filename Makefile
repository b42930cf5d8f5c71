PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2
EXTRAS := langgraph,autogen,agent-framework,ag2,ag2-classic,tools,embeddings,prometheus,otel,plot,notebooks,dev

.DEFAULT_GOAL := help
.PHONY: help install model demo test notebooks check bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: $(STAMP) ## create .venv with everything the tests need

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

model: $(STAMP) ## fetch the default model (once, about 100 MB)
	@$(BIN)/kvcomm models fetch

demo: model ## run the demo on the default model
	@echo "running the demo"
	@$(BIN)/kvcomm demo

test: model ## run all tests, those with real weights too
	@echo "running the tests in $(WORKERS) processes, each on one thread: tiny models are slower on more"
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $(WORKERS)
	@echo "running the tests of the kernels for CUDA, in Triton's interpreter"
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/backends/kernels

notebooks: model ## run the notebooks in examples/ and keep their outputs
	@echo "running the notebooks"
	@$(BIN)/python tests/notebook_runs.py

check: $(STAMP) ## lint, format check, types, arrows between packages
	@echo "checking lint, format, types and imports"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(STAMP) ## list what can be measured, and how
	@$(BIN)/kvcomm bench --help

clean: ## remove .venv and caches; cached models stay
	@echo "removing $(VENV) and caches"
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
