PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test lint bench zoo policies
help: ## say what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/'

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e '.[dev]'
	touch .venv/ready

setup: .venv/ready ## make .venv and install the package with what recipes and tests need

lint: .venv/ready ## style, format, types and direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" lint-imports

test: lint ## lint, then all tests
	$(BIN)/pytest

demo: .venv/ready ## train ResNet-18 split across four unequal clients (under 3 minutes)
	$(BIN)/python -W ignore recipes/demo.py

zoo: .venv/ready ## split every model of the zoo and train it beside plain Lightning (about 25 minutes)
	$(BIN)/pip install --quiet -e '.[zoo]'
	$(BIN)/python -m benchmarks.zoo

bench: .venv/ready ## throughput against plain Lightning, and what splitting adds (about 8 minutes)
	$(BIN)/python benchmarks/throughput.py --samples 2048 --epochs 1
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/shared.py
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.finding
	$(BIN)/python -m benchmarks.scheduler --clients 10 1000 100000

policies: .venv/ready ## every policy on 48 scenarios, the two clocks, the gain on the wall clock, a thousand clients (about 25 minutes)
	$(BIN)/python -m benchmarks.suite
	$(BIN)/python -m benchmarks.fidelity
	$(BIN)/python -m benchmarks.gain
	$(BIN)/python -m benchmarks.thousand
