# demo, test, test-all, page, soak, soak-vm, bench and boxes run test boxes: they need root on Debian 12 or 13.
INVENTORY ?= inventory
LIMIT ?=
PYTHON := .venv/bin/python
# The PATH of an activated .venv, as an operator has it.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTEST := $(PYTHON) -m pytest

.PHONY: help demo show status test test-all lint types unit boxes browser page soak soak-vm bench verify clean

## make demo      deploy to a test box; start, query, stop and reset one server; WEB=1: with the page
## make status    show the servers of all hosts in one table; HTML=PATH also writes a page for browsers
## make show      show the data of all hosts, or of HOST=NAME, with all defaults
## make verify    check that the hosts are as declared; changes nothing
##
## make lint      run ruff
## make types     run mypy
## make unit      run the unit tests; needs no root
## make boxes     build the images and snapshots of the test boxes
## make page      test the page in a browser
## make test      run lint, types, unit tests, and stories: tests that act as an operator (5 minutes)
## make test-all  run all tests, the stories on both Debians (40 minutes)
## make soak      repeat the tests of stops, resets and mounts up to 500 times (10 minutes)
## make soak-vm   on full machines, cut the power 180 times, reach memory and CPU limits, upgrade Debian (hours)
## make bench     measure resets, starts, a fleet, the page, and stops beside floods
## make clean     remove the test boxes and .venv
##
## status, show and verify take INVENTORY=PATH (default: inventory, the test boxes).
## status and verify also take LIMIT=NAME, a host or a group.
help:
	@sed -n 's/^## \{0,1\}//p' Makefile

# Debian's python3 cannot create environments without the package python3-venv.
.venv/installed: requirements.lock
	@python3 -c 'import ensurepip' 2>/dev/null || tests/boxes/python3-venv
	@echo "installing the locked Python packages into .venv"
	@python3 -m venv .venv
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

demo: .venv/installed
	@$(PYTHON) -m tests.boxes.demo $(if $(WEB),--web)

show: .venv/installed
	@$(PYTHON) -m left4me.inventory_export --show $(INVENTORY) $(if $(HOST),--limit $(HOST))

status: .venv/installed
	@$(PYTHON) -m left4me.fleet_status $(INVENTORY) $(if $(LIMIT),--limit $(LIMIT)) \
		$(if $(filter-out undefined,$(origin HTML)),--html '$(subst ','\'',$(HTML))')

# Without the plugins of the other tests it starts half a second sooner.
verify: .venv/installed
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTEST) tests/deployed --inventory $(INVENTORY) $(if $(LIMIT),--limit $(LIMIT))

lint: .venv/installed
	@ruff check
	@ruff format --check

types: .venv/installed
	@mypy

unit: .venv/installed
	@$(PYTEST)

# Built here with progress output, so that no test builds them silently.
boxes: .venv/installed
	@$(PYTHON) -m tests.boxes.deployed

# More workers than processors: most tests wait for a host.
SIDE_BY_SIDE := -n 4 --dist loadgroup --no-loadscope-reorder
# In CI, failed box tests run once more, to tell flaky tests from broken ones.
RUN := $(PYTHON) -m $(if $(CI),tests.rerun,pytest)

TWO_ATTACKS := tests/attacks/test_swapped_trees.py \
	tests/attacks/test_from_a_server.py::test_a_server_connects_to_nothing_on_its_host

test: lint types boxes
	@$(PYTEST) tests/stories tests/unit $(TWO_ATTACKS) $(SIDE_BY_SIDE)

# Chromium and the images with Cockpit, with progress output as above.
browser: .venv/installed
	@$(PYTHON) -m tests.page.prepare

page: browser
	@$(PYTEST) tests/page -n 3 --dist loadgroup

test-all: lint types boxes browser
	@$(RUN) tests/stories tests/unit tests/integration tests/attacks tests/page tests/vm/test_full_machine.py --both $(SIDE_BY_SIDE) $(MARKS)

soak: boxes
	@SOAK=1 $(RUN) tests/integration tests/attacks -m soak $(SIDE_BY_SIDE)

# By hand: without KVM each power cut takes about a minute. ROUNDS=1 is one of each kind on each Debian.
soak-vm: boxes
	@$(PYTEST) tests/vm -n 2 --dist loadgroup

bench: browser
	@$(PYTHON) -m bench.reset
	@$(PYTHON) -m bench.start
	@$(PYTHON) -m bench.fleet
	@$(PYTHON) -m bench.page
	@$(PYTHON) -m bench.stops

clean:
	@./box down
	@rm -rf .venv .boxes
