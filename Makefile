# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv and installs by itself.
# PYTHON=… chooses the interpreter; TORCH_INDEX=… the index of CPU builds of torch; SECONDS=… ends the demo; CONFIG=… is for run.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
# Tests at the same time: most of them wait for sockets and processes, not for a core.
JOBS ?= 3
BIN := .venv/bin
STAMP := .venv/.installed
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: help install demo test fuzz day faults simulate run bench bench-check evaluate artifact clean

help:
	@echo 'make install   create .venv and install'
	@echo 'make demo      everything at work without a network; SECONDS=25 ends it'
	@echo 'make test      style, types, architecture and tests'
	@echo 'make fuzz      200,000 damaged frames for each exchange'
	@echo 'make day       a day of recorded trades through each emulated exchange, with cuts, rollovers, stalls'
	@echo 'make faults    real processes killed and stopped, disks filled, links cut; the long way'
	@echo 'make simulate  1,000 schedules of faults against the whole daemon in virtual time; SEEDS=50, FIRST=0'
	@echo 'make run       the daemon on the shipped configuration: Binance live; CONFIG=file for another'
	@echo 'make bench     beside peers and limits, into docs/performance.md; bench-check holds the ratios to their floors'
	@echo 'make evaluate  the table of docs/model.md, and a report a row; DATA=folder of candles, OUT=folder to write to'
	@echo 'make artifact  the shipped model anew from its recipe, on the CPU; DATA=folder of candles'
	@echo 'make clean     remove .venv and caches'

install: $(STAMP)

# A machine without an NVIDIA GPU gets the CPU build of torch, from pip's own indexes or from TORCH_INDEX (the address of
# PyTorch's index of CPU builds); where neither has it, the ordinary build does, at the price of its size.
$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; PYTHON=/path/to/python names one'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@if nvidia-smi -L >/dev/null 2>&1; then echo 'NVIDIA GPU found: torch with CUDA'; else \
	  $(PIP) install -q --only-binary :all: $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') \
	    'torch==$(TORCH)+cpu' -c constraints.txt 2>/dev/null \
	  || echo 'no CPU build of torch to be had: the ordinary one it is; TORCH_INDEX=… names an index of CPU builds'; fi
	$(PIP) install -q -c constraints.txt -e '.[dev,evaluate]'
	$(BIN)/lstmd doctor
	@touch $@

demo: install
	@$(BIN)/lstmd demo $(if $(SECONDS),--seconds $(SECONDS))

run: install
	@$(BIN)/lstmd run $(if $(CONFIG),--config $(CONFIG))

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n $(JOBS)

fuzz: install
	FUZZ_FRAMES=200000 $(BIN)/pytest -q tests/feeds/test_fuzz.py

day: install
	DAY_HOURS=24 $(BIN)/pytest -q tests/daemon/test_day.py

faults: install
	LONG=1 $(BIN)/pytest -q tests/daemon/test_faults.py

SEEDS ?= 1000
FIRST ?= 0

simulate: install
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

DATA ?= ../shared/data/ohlcv
OUT ?= build/evaluation

evaluate: install
	$(BIN)/python -m training.table $(DATA) $(OUT)

# The same recipe, candles and machine give the same bytes. It takes hours; broken off, it goes on with the members it has.
artifact: install
	$(BIN)/lstmd train --device cpu --recipe training/recipes/default.toml --out inference/artifacts/default \
	  --candles $(wildcard $(DATA)/binance_um/*_1m_* $(DATA)/bybit_linear/*T_1m_* $(DATA)/bybit_linear/*_5m_* \
	  $(DATA)/bitmex/*)

# Each script answers one question in about a minute; recalibration needs candles and an artifact, so it is not among them.
BENCHMARKS := $(foreach name,step batch growth tick frames replay stream minute startup memory store universe outage absence,\
  $(if $(wildcard benchmarks/$(name).py),$(name)))

bench: install
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.table

bench-check: install
	@$(BIN)/python -m benchmarks.check
