# `make` alone lists the targets. Works with make 3.81 and in a path with spaces.
.DEFAULT_GOAL := help
PYTHON ?=
# Three on two cores: many tests wait for processes they started.
PYTEST_ARGS ?= -n 3 --dist loadgroup
# By whole files, what a file starts being started once; in the order of tests/stack/conftest.py.
# Three at a time: they mostly wait, and each has ports and folders of its own.
STACK_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder --durations=10
# Arguments for `spanloom up`, e.g. make run ARGS="--ports auto"
ARGS ?=

.PHONY: help setup setup-dev run chat test coverage test-versions stack-tools stack test-stack check format lint types layers docs lock bench scorecard simulate clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: ## create .venv and install the pinned dependencies
	@PYTHON="$(PYTHON)" sh scripts/setup.sh run

setup-dev:
	@PYTHON="$(PYTHON)" sh scripts/setup.sh dev

run: setup ## start everything: backend, retrieval, offline LLM, agent API
	@exec .venv/bin/python -m spanloom up $(ARGS)

chat: ## the chat page in a browser, beside `make run` (installs Streamlit)
	@PYTHON="$(PYTHON)" sh scripts/setup.sh ui
	@exec .venv/bin/python -m service.chat_page

test: setup-dev ## the whole test suite, real processes included
	.venv/bin/python -m pytest $(PYTEST_ARGS)

coverage: setup-dev ## the test suite with its branch coverage (coverage.xml)
	.venv/bin/python -m pytest --cov --cov-report=term:skip-covered --cov-report=xml $(PYTEST_ARGS)

test-versions: setup-dev ## the LangGraph scenarios with the oldest and newest LangGraph
	.venv/bin/python scripts/langgraph_versions.py

stack-tools: ## build Collector, Jaeger, Prometheus, Loki from Go modules (cached)
	@python3 scripts/stack_tools.py

stack: setup ## the production stack and the service as processes (needs stack-tools)
	@exec .venv/bin/python -m scripts.real_stack $(ARGS)

test-stack: setup-dev ## the suite against the real programs (needs stack-tools)
	.venv/bin/python -m pytest tests/stack -m stack $(STACK_ARGS)

check: format lint types layers test ## format, lint, types, layers, tests

format: setup-dev ## formatting (fails where `ruff format` would change a file)
	.venv/bin/python -m ruff format --check .

lint: setup-dev ## lint rules
	.venv/bin/python -m ruff check .

types: setup-dev ## mypy --strict
	.venv/bin/python -m mypy

layers: setup-dev ## import rules between the layers
	.venv/bin/lint-imports

bench: setup-dev ## measurements, side by side (prints tables)
	@for script in bench/*.py; do echo "== $$script"; .venv/bin/python "$$script" || exit 1; done

simulate: setup-dev ## what sampling keeps at each scale, and what each scale takes
	@.venv/bin/python bench/sampling_simulation.py
	@.venv/bin/python bench/capacity_model.py

scorecard: setup-dev ## LangGraph scenarios under this tracer and others (ARGS="--langgraph 1.2.24")
	@.venv/bin/python bench/scorecard.py $(or $(ARGS),--with-peers)

lock: ## refresh requirements*.lock (needs uv)
	sh scripts/lock.sh

clean: ## remove .venv, caches and var/
	rm -rf .venv var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
