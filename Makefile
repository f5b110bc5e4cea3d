# Everything a developer needs; nothing has to be installed but Python 3.11 or later.
#
#   make demo            the whole pipeline on real Kafka, with real figures (ARGS="--seed 7")
#   make test            all tests, on real Kafka and real PostgreSQL (TESTS="tests/unit -k ledger")
#   make lint            format, style, types, import rules
#   make bench           handler cost and worker throughput, as ratios
#   make kafka           the embedded Kafka in the foreground

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
TESTS ?= tests
ARGS ?=

.PHONY: demo test lint bench kafka clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/runtap demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(TESTS) $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench_handler.py $(ARGS)
	$(BIN)/python tests/benchmarks/bench_worker.py $(ARGS)

kafka: $(INSTALLED)
	$(BIN)/runtap kafka $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
