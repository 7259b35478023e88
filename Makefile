# `make` alone says what there is. Needed: make and python3 (3.11 or newer); the rest comes by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APT := apt-get install -y --no-install-recommends
# What the tests of the whole daemon, the comparison and the load run stand beside, as Debian names it.
TEST_PACKAGES := nginx-light haproxy wrk curl chromium openssl slowhttptest strace faketime
# Of one test of those that go on for as long as they are told.
TIMEOUT := 7200
BENCH_PACKAGES := nginx-light haproxy caddy wrk openssl

.DEFAULT_GOAL := help
.PHONY: help run demo demo-group test lint types fmt transcripts bench bench-group load clean simulate mutants soak soak-deep test-packages bench-packages bench-group-packages

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

run: $(VENV)/.installed ## Start the demo: three toy backends, the proxy, the dashboard; Ctrl-C ends it
	@exec $(BIN)/lb demo

demo: run ## The same as `make run`

demo-group: $(VENV)/.installed ## Three instances that agree, with three backends: kill one, and see
	@exec $(BIN)/lb demo --group

test: $(VENV)/.installed-dev test-packages ## Run all tests, with each area's share at the end
	$(BIN)/python -m pytest

simulate: $(VENV)/.installed-dev ## Break a group in every way: SEED=7, or SECONDS=600; LONG=1
	PYTHONPATH=tests $(BIN)/python -m simulator $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(LONG),--long)

mutants: $(VENV)/.installed-dev ## Plant bugs in the consensus core; the simulator must catch each
	PYTHONPATH=tests $(BIN)/python -m simulator.mutants

soak: $(VENV)/.installed-dev test-packages ## An instance under load and faults, a group under fire, reloads, long tests: SECONDS=600, SEED=7
	PYTHONPATH=tests $(BIN)/python -m soak --seconds $(or $(SECONDS),600) --seed $(or $(SEED),7)
	-PYTHONPATH=tests $(BIN)/python -m soak.reloads  # A figure, and no reason to stop here.
	$(BIN)/python -m pytest --timeout $(TIMEOUT) -m long
	CHAOS_SECONDS=$(or $(SECONDS),600) CHAOS_SEED=$(or $(SEED),7) $(BIN)/python -m pytest --timeout $(TIMEOUT) -s tests/chaos
	RELOADS=1000 $(BIN)/python -m pytest --timeout $(TIMEOUT) tests/journeys/test_faults_processes.py -k many_reloads

soak-deep: $(VENV)/.installed-dev ## The simulator with all mutants, the wire's fuzzers, plugins at random: SECONDS=600 each
	SIMULATOR_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest --timeout $(TIMEOUT) tests/simulator
	WIRE_SECONDS=$(or $(SECONDS),100) WIRE_SEED=$(or $(SEED),7) $(BIN)/python -m pytest --timeout $(TIMEOUT) tests/wire/test_fuzz.py tests/wire/test_fuzz_nginx.py
	PLUGIN_EXAMPLES=10000 $(BIN)/python -m pytest --timeout $(TIMEOUT) tests/wire/test_plugin_properties.py

lint: $(VENV)/.installed-dev ## Check style, format and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

types: $(VENV)/.installed-dev ## Check types
	$(BIN)/mypy

fmt: $(VENV)/.installed-dev ## Put style and format right where a tool can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

transcripts: $(VENV)/.installed-dev ## Write what the consensus core does now into tests/raft/*.txt
	cd tests && ../$(BIN)/python -m raft.transcripts

bench: $(VENV)/.installed bench-packages ## Accord beside nginx, HAProxy and Caddy; about six minutes
	$(BIN)/python bench/compare.py --out out/compare.md

bench-group: $(VENV)/.installed bench-group-packages ## A group of three beside etcd's; about six minutes
	$(BIN)/python bench/group.py --out out/group.md

load: $(VENV)/.installed-bench ## Locust against the demo; leaves out/load.html
	$(BIN)/python bench/load.py

clean: ## Remove what these targets made
	rm -rf $(VENV) out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# An editable install: what is edited runs at once, and only a new pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	@echo "Installing what Accord needs (once; about half a minute)" >&2
	@$(BIN)/pip install --quiet --editable '.[tables]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need (once)" >&2
	@$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet --group test --group lint
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "Installing what the load run needs (once)" >&2
	@$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet --group bench
	@touch $@

# Debian's python3 comes without ensurepip, which makes the pip of a new environment.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Accord needs Python 3.11 or newer; say which: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call apt,python3-venv)
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)

test-packages:
	@$(call programs,nginx haproxy wrk curl chromium openssl slowhttptest strace faketime) || $(call apt,$(TEST_PACKAGES))

bench-group-packages:
	@$(call programs,etcd) || $(call apt,etcd-server)

bench-packages:
	@$(call programs,nginx haproxy caddy wrk) || $(call apt,$(BENCH_PACKAGES))

# Servers live in /usr/sbin, which is not in everyone's PATH.
programs = (PATH="$$PATH:/usr/sbin"; for name in $(1); do command -v $$name >/dev/null || exit 1; done)

# As root on Debian: install. Otherwise: say the one command, and stop.
apt = { \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo "Installing $(1)" >&2; \
    export DEBIAN_FRONTEND=noninteractive; \
    $(APT) $(1) >/dev/null 2>&1 || { apt-get update -qq && $(APT) -qq $(1) >/dev/null; }; \
  else \
    echo "Missing: $(1). Install and try again: sudo apt-get install $(1)" >&2; exit 1; \
  fi; }
