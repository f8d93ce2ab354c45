# `make help` lists what people type. Everything installs from constraints.txt, so that no package can pull another torch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := .cacheproxy
INSTALLED := $(VENV)/.installed
CLIENTS := .venv-clients
CLIENTS_INSTALLED := $(CLIENTS)/.installed
ENGINES := .venv-engines
ENGINES_INSTALLED := $(ENGINES)/.installed

# Many tests wait more than they work, so there is one process more than most machines of CI have cores.
PROCESSES := 3
# Looked for by name, since collecting all tests takes as long as running some of these.
QUIET := grep -rl --include='test_*.py' 'pytest.mark.quiet' tests

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-fast lint format bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED) $(CLIENTS_INSTALLED) $(ENGINES_INSTALLED) ## create .venv with all extras, and what the tests need beside it

$(INSTALLED): pyproject.toml constraints.txt .ci/install
	.ci/install "$(PYTHON)" "$(VENV)"
	@touch $@

$(CLIENTS_INSTALLED): .ci/install-clients tests/clients/node/package-lock.json $(wildcard tests/clients/python/*.txt) | $(INSTALLED)
	.ci/install-clients "$(PYTHON)" $(CLIENTS)
	@touch $@

$(ENGINES_INSTALLED): .ci/install-engines tests/support/engines.txt | $(INSTALLED) $(CLIENTS_INSTALLED)
	.ci/install-engines $(BIN)/python $(ENGINES)
	@touch $@

demo: $(INSTALLED) ## real questions through the proxy and a small local model: no key, no network
	$(BIN)/cacheproxy demo --data-dir $(DATA)

serve: $(INSTALLED) ## serve on port 8080; the backend is OPENAI_BASE_URL, or UPSTREAM=url
	$(BIN)/cacheproxy serve --data-dir $(DATA) $(if $(UPSTREAM),--upstream $(UPSTREAM))

test: $(INSTALLED) $(CLIENTS_INSTALLED) $(ENGINES_INSTALLED) ## the whole test suite
	$(BIN)/python -m pytest -m "not quiet" -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m quiet $$($(QUIET))

test-fast: $(INSTALLED) $(ENGINES_INSTALLED) ## the tests that need no model and no kill loop
	$(BIN)/python -m pytest -m "not slow"

lint: $(INSTALLED) ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## measure everything and write docs/benchmarks.md (25 minutes, a quiet machine); PARTS="hot scale" only these
	$(BIN)/python -m tests.benchmarks $(if $(PARTS),--parts $(PARTS))

clean: ## remove .venv, caches and local data
	rm -rf $(VENV) $(CLIENTS) .venv-peers $(ENGINES) tests/clients/node/node_modules $(DATA) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
