# Two commands do everything: `make demo` and `make test`. Both make the environment first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
SIZE ?= demo
OUT ?= runs/demo-$(SIZE)
WORKERS ?= 2
# What tests compare with. Without their dependencies: they ask for OpenCV with a window system, or for requests 2.25.
REFERENCES := imagecorruptions-imaug torchattacks pyautoattack

.PHONY: demo test test-all bench lint environment clean

demo: $(STAMP)  ## train, shake, record, measure, relate, report: ends with the path of the report
	$(BIN)/geophone run demo --size $(SIZE) --out $(OUT) --workers $(WORKERS)

test: $(STAMP) lint  ## lint, types, import contracts, tests
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-all: $(STAMP) lint  ## also the slow tests: kills, Ray, full data sets
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,ray]"
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/count_shape.py

bench: $(STAMP)  ## ratios in one process, see benchmarks/RECORDS.md
	$(BIN)/python -m benchmarks

environment: $(STAMP)

# torch comes first and alone, so that nothing else chooses another build of it.
$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(REFERENCES)
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
