# make            what there is
# The commands that need a machine of their own (demo, test, soak) need root on Debian 12 or 13, and say so.
INVENTORY ?= inventory
LIMIT ?=
PYTHON := .venv/bin/python
# As an activated environment has it, so that `pyinfra` below is what an operator types.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTEST := $(PYTHON) -m pytest

.PHONY: help demo show status test lint types unit integration soak bench verify clean

help:
	@echo "make demo      a test box, the deploy, one server started, asked and stopped: the figures of that stop"
	@echo "make show      what a host's data come to with all defaults   INVENTORY=../fleet/inventory HOST=host"
	@echo "make status    every server of every host, in one table  INVENTORY=../fleet/inventory LIMIT=host"
	@echo "make verify    prove the state of deployed hosts       INVENTORY=../fleet/inventory LIMIT=host"
	@echo "make test      lint, types, unit tests, integration tests on boxes of both Debians (minutes)"
	@echo "make soak      the same claims with the full counts (tens of minutes)"
	@echo "make bench     how long a reset takes beside a shell that does the same, a start with 80 MB and 8 GB, a fleet"
	@echo "make unit      what needs no root"
	@echo "make clean     take the test boxes down and remove the environment"

# Debian's python3 makes no environments before python3-venv is there.
.venv/installed: requirements.lock
	@python3 -c 'import ensurepip' 2>/dev/null || tests/boxes/python3-venv
	@echo "installing the locked Python packages into .venv"
	@python3 -m venv .venv
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

demo: .venv/installed
	@$(PYTHON) -m tests.boxes.demo

show: .venv/installed
	@$(PYTHON) -m left4me.fleet --show $(INVENTORY) $(if $(HOST),--limit $(HOST))

status: .venv/installed
	@$(PYTHON) -m left4me.status $(INVENTORY) $(if $(LIMIT),--limit $(LIMIT))

# Without the plugins of the other tests it is there half a second sooner.
verify: .venv/installed
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTEST) tests/deployed --inventory $(INVENTORY) $(if $(LIMIT),--limit $(LIMIT))

lint: .venv/installed
	@ruff check
	@ruff format --check

types: .venv/installed
	@mypy

unit: .venv/installed
	@$(PYTEST)

# Three boxes' worth of tests side by side: most of them wait, for what a host does in its own time.
integration: .venv/installed
	@$(PYTEST) tests/integration -n 3 --dist loadgroup

test: lint types unit integration

soak: .venv/installed
	@SOAK=1 $(PYTEST) tests/integration -n 3 --dist loadgroup -m soak -rA

bench: .venv/installed
	@$(PYTHON) -m bench.reset
	@$(PYTHON) -m bench.start
	@$(PYTHON) -m bench.fleet

clean:
	@./box down
	@rm -rf .venv .boxes
