# Everything a developer needs; nothing has to be installed but Python 3.11 or later.
#
#   make demo            the whole pipeline on real Kafka, with real figures (ARGS="--seed 7")
#   make test            the tests, on real Kafka and real PostgreSQL (TESTS=tests/unit ARGS="-k ledger")
#   make test-long       chaos, fuzz, soak, the price tables, random sequences, with ten times the effort
#   make lint            format, style, types, import rules
#   make size            the lines of each room, beside the most that it may have
#   make bench           handler cost and worker throughput, as ratios; the cost of pricing a call
#   make bench-worker    events a second and core of a worker, its stages, how late figures are (ARGS="--seconds 0")
#   make bench-reads     how long the questions of a page take on a month of traffic (ARGS="--runs 50000 --stores SQLite")
#   make bench-start     how long `runtap report --help` and the import of the collector take
#   make bench-emitter   what tapping costs beside LangSmith, Langfuse, OpenInference and OpenLLMetry (ARGS="--modes a")
#   make soak            ten minutes without Kafka at 1,000 events a second (ARGS="--seconds 60")
#   make mutants         takes the rules of exactness away one by one; a test must fail for each (ARGS="gap")
#   make chaos-short     five minutes of faults, then every figure compared (ARGS="--seed 7")
#   make chaos           an hour of them on three Kafka nodes, then ten minutes of single kills, and ten of many at once
#   make fuzz            ten minutes of mutated records
#   make kafka           the embedded Kafka in the foreground

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PEERS := .venv-peers/installed
TESTS ?= tests
SIDE_BY_SIDE ?= 4
ARGS ?=

.PHONY: demo test test-long lint size bench bench-worker bench-reads bench-start bench-emitter soak mutants chaos-short chaos fuzz kafka clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/runtap demo $(ARGS)

# Side by side first, each worker with a Kafka and a PostgreSQL of its own; then what times things. 5: no such test.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist worksteal -m "not long and not alone" $(TESTS) $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m "not long and alone" $(TESTS) $(ARGS) || [ $$? = 5 ]

test-long: $(INSTALLED)
	RUNTAP_FUZZ_SECONDS=300 $(BIN)/python -m pytest --timeout 7200 -m long $(TESTS) $(ARGS) || [ $$? = 5 ]
	RUNTAP_SEQUENCES=200000 RUNTAP_MODEL_EXAMPLES=500 $(BIN)/python -m pytest --timeout 7200 \
		tests/unit/test_collector_robustness.py tests/integration/test_model.py $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

size:
	$(PYTHON) tests/size.py

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench_handler.py $(ARGS)
	$(BIN)/python tests/benchmarks/bench_worker.py $(ARGS)
	$(BIN)/python tests/benchmarks/bench_pricing.py

bench-worker: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench_worker.py $(ARGS)

bench-reads: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench_reads.py $(ARGS)

bench-start: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench_start.py $(ARGS)

# The peers live in an environment of their own, with the same versions of everything that both need.
$(PEERS): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[demo]' langsmith langfuse openinference-instrumentation-langchain \
		opentelemetry-instrumentation-langchain opentelemetry-sdk opentelemetry-exporter-otlp-proto-http
	touch $(PEERS)

bench-emitter: $(PEERS)
	.venv-peers/bin/python tests/benchmarks/bench_emitter.py $(ARGS)

soak: $(INSTALLED)
	$(BIN)/python tests/benchmarks/soak_emitter.py $(ARGS)

mutants: $(INSTALLED)
	$(BIN)/python tests/mutants.py $(ARGS)

chaos-short: $(INSTALLED)
	$(BIN)/python tests/chaos/run_chaos.py $(ARGS)

chaos: $(INSTALLED)
	$(BIN)/python tests/chaos/run_chaos.py --long $(ARGS)
	$(BIN)/python tests/chaos/run_chaos.py --storm --isolated $(ARGS)
	$(BIN)/python tests/chaos/run_chaos.py --storm $(ARGS)

fuzz: $(INSTALLED)
	RUNTAP_FUZZ_SECONDS=300 $(BIN)/python -m pytest tests/integration/test_fuzz.py $(ARGS)

kafka: $(INSTALLED)
	$(BIN)/runtap kafka $(ARGS)

clean:
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
