# Everything a fresh machine with Python >= 3.11 and make needs: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
JOBS ?= auto
CODE := provenance collector tui tests examples docs

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-duckdb15 lint check benchtest campaign crash attack stamp-attacks lab bench soak format lock picture clean

help:  ## this text
	@awk -F ':.*##' '/^[a-z0-9-]+:.*##/ {printf "  make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="--headless --format json" are handed on: make demo ARGS="…", make test ARGS="-k stamp"'

setup: $(READY)  ## make .venv with exactly the versions of requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mesh-provenance needs Python 3.11 or later, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 …")'
	@echo 'setting up $(VENV) (once, a minute or two)' >&2  # stdout is for data: make demo may print JSON
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable . >&2
	@touch $@

demo: $(READY)  ## a real little mesh with four planted incidents, and the workbench on it
	@$(BIN)/provenance demo $(ARGS)

test: $(READY)  ## the whole test suite, the headless demo among it
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'not demo and not bench' $(ARGS)
	$(BIN)/python -m pytest -m demo $(ARGS) || [ $$? -eq 5 ]  # 5: ARGS chose no demo test

test-duckdb15: $(READY)  ## the store's tests on DuckDB 1.5, the oldest that is supported
	@test -e $(VENV)-duckdb15 || $(PYTHON) -m venv $(VENV)-duckdb15 >&2
	@$(VENV)-duckdb15/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock >&2
	@$(VENV)-duckdb15/bin/python -m pip install --quiet --disable-pip-version-check 'duckdb==1.5.*' >&2
	@$(VENV)-duckdb15/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable . >&2
	$(VENV)-duckdb15/bin/python -m pytest -n $(JOBS) --dist loadgroup tests/collector/store tests/collector/exchange tests/collector/test_schema.py tests/collector/test_api_and_client.py tests/collector/test_read_api_attacks.py $(ARGS)

lint: $(READY)  ## ruff, mypy, import-linter
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## before every commit: lint and the fast tests
	$(BIN)/python -m pytest -q -n $(JOBS) -m 'not slow and not demo' $(ARGS)

campaign: $(READY)  ## the detectors on 40 simulated meshes
	PROVENANCE_SIMULATED_SEEDS=100-139 $(BIN)/python -m pytest -n $(JOBS) tests/collector/forensics/test_simulated_meshes.py $(ARGS)

crash: $(READY)  ## kill -9 a collector 100 times under load: nothing acknowledged is lost or there twice
	@$(BIN)/python -m tests.campaigns.crash --out crash.json $(ARGS)

attack: $(READY)  ## everything hostile that we know, against a collector in use
	@$(BIN)/python -m tests.campaigns.attack --out attack.json $(ARGS)

stamp-attacks: $(READY)  ## somebody between two services, over gRPC, ASGI and WSGI: 100,000 calls each, and what `provenance verify` tells
	@$(BIN)/python -m tests.campaigns.stamps --out stamps.json $(ARGS)

lab: $(READY)  ## root, Linux: pods, redirection, Envoys; every way past the mesh, and what can be proven with which witnesses
	@$(BIN)/python -m collector.lab --out lab.json $(ARGS)

bench: $(READY)  ## the benchmarks, as JSON in bench.json
	@$(BIN)/python tests/benchmarks/run.py --out bench.json $(ARGS)

benchtest: $(READY)  ## that every benchmark still runs, in its short form
	$(BIN)/python -m pytest -n 0 -m bench $(ARGS)

soak: $(READY)  ## ten minutes of full load: the collector's memory, as JSON in soak.json and drawn in soak.svg
	@$(BIN)/python tests/benchmarks/soak.py --out soak.json $(ARGS)

format: $(READY)  ## let ruff write the layout
	$(BIN)/ruff check --fix --quiet $(CODE)
	$(BIN)/ruff format $(CODE)

picture: $(READY)  ## draw docs/workbench.svg again
	$(BIN)/python docs/picture.py

lock: $(READY)  ## pin the newest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes --python-version 3.11 --upgrade --quiet --no-header --no-annotate --output-file requirements.lock

clean:  ## remove what make made
	rm -rf $(VENV) $(VENV)-duckdb15 .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist bench.json soak.json soak.svg crash.json attack.json stamps.json lab.json snapshot_report.html
