# SPDX-License-Identifier: LGPL-2.1-or-later
# Every target sets itself up; on a prepared machine that takes no time.
PYTHON := .venv/bin/python

.PHONY: help setup check lint fast test lab-test demo bench lab-down clean

help:
	@echo "make check   lint, strict types, fast tests (under a minute)"
	@echo "make test    everything, the lab with real sanlock, libvirt, QEMU and BMCs included"
	@echo "make demo    watch an engine VM survive a power cut"
	@echo "make bench   the figures, measured here"

setup:
	@scripts/setup

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy -p scoring -p broker -p agent -p tests

fast: setup
	@$(PYTHON) -m pytest -q tests --ignore=tests/lab

check: lint fast

lab-test: setup
	@$(PYTHON) -m pytest -q tests/lab

test: check lab-test

demo: setup
	@$(PYTHON) -m tests.lab demo

bench: setup
	@$(PYTHON) -m tests.bench

lab-down:
	@$(PYTHON) -m tests.lab down

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
