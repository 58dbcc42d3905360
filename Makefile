# make            what there is
# The commands that need a machine of their own (demo, test, soak) need root on Debian 12 or 13, and say so.
INVENTORY ?= inventory
LIMIT ?=
PYTHON := .venv/bin/python
# As an activated environment has it, so that `pyinfra` below is what an operator types.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTEST := $(PYTHON) -m pytest

.PHONY: help demo show status test test-all lint types unit boxes soak bench verify clean

help:
	@echo "make demo      a test box, the deploy, one server started, asked and stopped: the figures of that stop"
	@echo "make show      what a host's data come to with all defaults   INVENTORY=../fleet/inventory HOST=host"
	@echo "make status    every server of every host, in one table  INVENTORY=../fleet/inventory LIMIT=host"
	@echo "make verify    prove the state of deployed hosts       INVENTORY=../fleet/inventory LIMIT=host"
	@echo "make test      lint, types, unit tests, and the stories of an operator on test boxes (five minutes)"
	@echo "make test-all  everything, the stories on both Debians (half an hour)"
	@echo "make soak      counted claims with the full counts (ten minutes)"
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
	@$(PYTHON) -m left4me.inventory_export --show $(INVENTORY) $(if $(HOST),--limit $(HOST))

status: .venv/installed
	@$(PYTHON) -m left4me.fleet_status $(INVENTORY) $(if $(LIMIT),--limit $(LIMIT))

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

# The images, and a deployed host as a snapshot, with progress: no test waits for them in silence.
boxes: .venv/installed
	@$(PYTHON) -m tests.boxes.deployed

# More tests side by side than there are processors: most of them wait, for what a host does in its own time.
SIDE_BY_SIDE := -n 4 --dist loadgroup --no-loadscope-reorder
# In CI a test that fails by chance is told from a broken one.
RUN := $(PYTHON) -m $(if $(CI),tests.rerun,pytest)

test: lint types boxes
	@$(PYTEST) tests/stories tests/unit $(SIDE_BY_SIDE)

test-all: lint types boxes
	@$(RUN) tests/stories tests/unit tests/integration --both $(SIDE_BY_SIDE) $(MARKS)

soak: boxes
	@SOAK=1 $(RUN) tests/integration -m soak $(SIDE_BY_SIDE)

bench: .venv/installed
	@$(PYTHON) -m bench.reset
	@$(PYTHON) -m bench.start
	@$(PYTHON) -m bench.fleet

clean:
	@./box down
	@rm -rf .venv .boxes
