# SPDX-License-Identifier: GPL-2.0-or-later
# Everything is built and run from here; `make help` lists what there is. V=1 shows the commands.
# A step that is up to date costs nothing: its output, or a stamp under build/, is newer than its input.

PYTHON ?= /usr/bin/python3
BUILD  := build
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(BUILD)/stamp
LOG    := $(BUILD)/log

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
comma := ,

# $(call step,NAME,WHAT,COMMANDS): one line of progress; the output is kept in build/log/NAME.log and shown
# when the step fails.
ifdef V
Q :=
step = @printf '%-7s %s\n' '$(1)' '$(2)'; mkdir -p $(LOG); set -x; $(3)
else
Q := @
step = @printf '%-7s %s\n' '$(1)' '$(2)'; mkdir -p $(LOG); \
	( $(3) ) >$(LOG)/$(1).log 2>&1 || { rc=$$?; tail -n 40 $(LOG)/$(1).log; echo "$(1): failed, all of it in $(LOG)/$(1).log" >&2; exit $$rc; }
endif

.PHONY: help setup bpf shim image image-disk promtool man check model test-fast test demo demo-disk campaign bench lab-clean clean

help:
	@echo 'make setup      Debian packages (as root, when one is missing) and the Python environment in $(VENV)'
	@echo 'make bpf        the packet programs, into $(BUILD)/bpf'
	@echo 'make shim       the userfaultfd shim, into $(BUILD)/shim'
	@echo 'make image      the guest that the demo and the tests boot, into $(BUILD)/image'
	@echo 'make image-disk the guest on a disk, with PostgreSQL, into $(BUILD)/image-disk'
	@echo 'make man        the manual pages and the bash completion, into $(BUILD)/man and $(BUILD)/completion'
	@echo 'make promtool   the checker of dashboards and alerts that the tests use, into $(BUILD)/promtool'
	@echo 'make demo       two hosts on this machine, a VM, and what its clients see when a host dies'
	@echo 'make demo-disk  a database on a replicated disk outlives N crashes (20), and the loss of power of both hosts'
	@echo 'make campaign   N faults one after another, each judged, into $(BUILD)/campaign/report.json; SEED=, ROUND=, ARGS='
	@echo 'make model      the protocol verified exhaustively with SPIN; each configuration ends with errors: 0'
	@echo 'make test       the checks and all tests      (as root; does all set-up itself)'
	@echo 'make test-fast  the tests that boot no guest'
	@echo 'make check      ruff, mypy --strict, import-linter'
	@echo 'make bench      measures, into $(BUILD)/bench/report.json; ONLY=group for one group'
	@echo 'make lab-clean  takes down every lab that is up'
	@echo 'make clean      removes $(BUILD) (not $(VENV))'
	@echo 'V=1 shows the commands.'

# --- set-up -------------------------------------------------------------------------------------------------

setup: $(VENV)/.ready $(VENV)/.installed

# Nothing is asked of the network when every package is there.
$(STAMP)/apt: apt-packages.txt
	$(Q)mkdir -p $(@D)
	$(Q)missing=; for p in $$(sed 's/#.*//' $<); do \
	    [ "$$(dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    echo "apt     installing$$missing"; mkdir -p $(LOG); export DEBIAN_FRONTEND=noninteractive; \
	    [ $$(id -u) = 0 ] || { echo "apt: run as root once, or: apt-get install$$missing" >&2; exit 1; }; \
	    { apt-get -o DPkg::Lock::Timeout=300 update && \
	      apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $$missing; } >$(LOG)/apt.log 2>&1 \
	      || { tail -n 20 $(LOG)/apt.log; echo "apt: failed, all of it in $(LOG)/apt.log" >&2; exit 1; }; \
	fi; touch $@

# Debian's own modules (nftables, libnbd) come from the system's packages.
$(VENV)/.ready: requirements.txt | $(STAMP)/apt
	$(call step,venv,Python packages into $(VENV),\
	    { [ -x $(PY) ] || $(PYTHON) -m venv --system-site-packages $(VENV); } && \
	    $(PY) -m pip install -r $< && touch $@)

# The `holdfast` command, running from this tree.
$(VENV)/.installed: pyproject.toml $(VENV)/.ready
	$(call step,install,holdfast into $(VENV)/bin,\
	    $(PY) -m pip install --no-build-isolation --no-deps -e . && touch $@)

# --- what is built ------------------------------------------------------------------------------------------
# Each part brings its own rules; they hang their outputs on the targets named here.

bpf shim image image-disk: | $(STAMP)/apt

-include ebpf/Makefile
-include vmlink/Makefile
-include images/Makefile

man: setup
	$(call step,man,manual pages and bash completion,\
	    $(PY) -m appliance.cli.manual --out $(BUILD)/man && mkdir -p $(BUILD)/completion && \
	    $(PY) -m appliance.cli completion bash >$(BUILD)/completion/holdfast)

# --- checks and tests ---------------------------------------------------------------------------------------

CODE = $(foreach d,appliance ebpf vmlink rules,$(if $(shell find $(d) -name '*.py' 2>/dev/null),$(d)))

check: setup
	$(call step,ruff,code style and common mistakes,$(VENV)/bin/ruff check .)
	$(call step,mypy,types: $(CODE),$(VENV)/bin/mypy --strict $(CODE))
	$(call step,imports,who may import whom,$(VENV)/bin/lint-imports --no-cache)

test-fast: setup bpf shim image
	$(Q)$(PY) -m pytest -q -m 'not slow' $(ARGS)

model: setup
	$(Q)$(PY) -m tests.model.run

# Debian's package would install a daemon: its checker alone is taken out.
promtool: $(BUILD)/promtool/promtool

$(BUILD)/promtool/promtool: tests/metrics/promtool.py | $(STAMP)/apt
	$(call step,promtool,the checker of dashboards and alerts,\
	    $(PYTHON) -m tests.metrics.promtool --out $(@D) --cache $(BUILD)/debs && touch $@)

test: check model bpf shim image image-disk promtool
	$(Q)$(PY) -m pytest -q $(ARGS)

# --- running it ---------------------------------------------------------------------------------------------

demo: setup bpf shim image
	$(Q)$(PY) -m appliance.lab.demo --out $(BUILD)/demo

demo-disk: setup bpf shim image image-disk
	$(Q)$(PY) -m appliance.lab.demo_disk --out $(BUILD)/demo-disk $(if $(N),--crashes $(N)) $(if $(SEED),--seed $(SEED)) $(ARGS)

campaign: setup bpf shim image $(if $(findstring --guest,$(ARGS)),image-disk)
	$(Q)$(PY) -m appliance.lab.campaign --count $(or $(N),300) $(if $(SEED),--seed $(SEED)) \
	    $(if $(ROUND),--round $(ROUND)) --out $(BUILD)/campaign $(ARGS)

bench: setup bpf shim image image-disk
	$(Q)mkdir -p $(BUILD)/bench
	$(Q)$(PY) -m tests.bench.run $(if $(ONLY),--only $(ONLY)) --out $(BUILD)/bench/report.json

lab-clean: setup
	$(Q)for lab in /run/holdfast/lab/*/; do \
	    [ ! -d "$$lab" ] || $(VENV)/bin/holdfast lab down --name "$$(basename "$$lab")"; done

clean:
	$(Q)rm -rf $(BUILD)
