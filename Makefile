# Two commands do everything: `make demo` sets up and runs the product, `make test` sets up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types check long-tests live-tests fuzz hotpath bench drift peers clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tracer demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m 'not guarantee' -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

check: lint types test

# Statistical tests of the promise over many seeded draws: minutes, not seconds.
long-tests: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m guarantee --timeout=3600

# Of these, what watches live agreement: three minutes.
live-tests: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m guarantee --timeout=3600 tests/guarantees/live

# 20,000 requests that nobody should send, against a gateway process: a minute or two.
fuzz: $(VENV)/.installed
	$(BIN)/python bench/fuzz.py

# Whether a call costs more than it did: seconds, with nothing else running.
hotpath: $(VENV)/.installed
	$(BIN)/python bench/hotpath.py --rounds 10 --compare

# The figures of README and docs; needs the data sets in TRACER_DATA.
bench: $(VENV)/.installed
	$(BIN)/python bench/frontier.py
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/flywheel.py
	$(BIN)/python bench/calibration.py

# The world changes under a live policy: six minutes; needs the data sets in TRACER_DATA.
drift: $(VENV)/.installed
	$(BIN)/python bench/drift.py

# What a call costs, beside other gateways: Linux with wrk, nginx and node; installs the peers, takes twenty minutes.
peers: $(VENV)/.installed
	$(BIN)/python bench/peers.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
