# SPDX-License-Identifier: LGPL-2.1-or-later
# Every target sets itself up; on a prepared machine that takes no time.
PYTHON := .venv/bin/python
HOSTS ?= 2..7
SEEDS ?= 200
# Without its compiled files Python compiles the code and the tests anew for each process.
unexport PYTHONDONTWRITEBYTECODE
# Tests of files that share nothing run side by side, in forks of one process that has collected
# them (docs/decisions/0087). Many more than cores: half of their time the unit tests wait, for a
# deadline, a daemon, a child, and a fork costs nothing.
SIDE_BY_SIDE := -p tests.side_by_side --processes 8

# Labs share nothing but the two cores, and most of the time they wait.
LABS := -n 2 --dist loadfile

.PHONY: help setup check lint fast slow-test explore test contract-test simulation-test story-test seed-test browser-test lab-test lab-test-long test-storage demo demo-sim simulate \
	nightly mutation bench bench-takeover lab-down clean package-build-test package-test packages deb rpm release release-check

help:
	@echo "make check     lint, strict types, fast tests (under a minute)"
	@echo "make explore   the fast tests with other random numbers each time"
	@echo "make test      everything, the lab with real sanlock, libvirt, QEMU and BMCs included"
	@echo "make lab-test-long  what of the lab takes minutes: a fencer killed at each step, and so on"
	@echo "make test-storage  the same cases on every storage that can be had here (STORAGE=ceph: one)"
	@echo "make demo      watch three VMs survive a power cut (VMS=1: the engine alone; STORAGE=ceph, ...)"
	@echo "make demo-sim  the same story in virtual time, with Python alone"
	@echo "make simulate  SEEDS=1000 HOSTS=2..7: whole clusters, faults by chance, in virtual time"
	@echo "               SEED=n TRACE=1: one of them, told"
	@echo "make nightly   SEEDS=5000 PART=1/4: thousands of them; what has run is not run again"
	@echo "make packages  those of the commit that is HEAD, with checksums, in build/packages"
	@echo "make deb rpm   some of them"
	@echo "make package-test  them, installed in clean roots with systemd (minutes)"
	@echo "make release-check  is the commit fit to be tagged?"
	@echo "make release   KEY=ID: packages, sources, repositories for apt and dnf, signed"
	@echo "make bench     the figures, measured here"
	@echo "make bench-takeover  RUNS=20: power cut, hang, cable or storage gone, QEMU killed: each phase (hours)"
	@echo "make mutation  does every line of scoring/ matter to some test? (minutes)"

setup:
	@scripts/setup

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/bandit -q -c pyproject.toml -r scoring broker agent packaging
	@.venv/bin/mypy -p scoring -p broker -p agent -p tests
	@.venv/bin/mypy packaging/build.py docs/generate_man.py

# Of the file that is left out all is slow, and its library takes 3 s to get ready.
fast: setup
	@$(PYTHON) -m pytest -q $(SIDE_BY_SIDE) tests/unit -m "not slow" \
		-p no:schemathesis --ignore tests/unit/test_http_api_described.py

# What of the unit tests starts processes or computes for long (docs/decisions/0084).
slow-test: setup
	@$(PYTHON) -m pytest -q $(SIDE_BY_SIDE) tests/unit -m slow

# With other random numbers each time: for a night, not for a commit.
explore: setup
	@$(PYTHON) -m pytest -q $(SIDE_BY_SIDE) tests/unit --hypothesis-profile=random

check: setup
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line lint fast

simulation-test: story-test seed-test

story-test: setup
	@$(PYTHON) -m pytest -q -n auto --dist worksteal tests/simulation --ignore tests/simulation/test_seeds.py

# The seeds have processes of their own: each of pytest's would run all of them.
seed-test: setup
	@$(PYTHON) -m pytest -q tests/simulation/test_seeds.py

lab-test: setup
	@$(PYTHON) -m pytest -q $(LABS) tests/lab

# What may happen on each storage, about ten minutes for each: not a part of `make test`.
# STORAGE=ceph: that one alone.
test-storage: setup
	@$(PYTHON) -m pytest -q -rs -s tests/lab/test_storages.py -m storage $(if $(STORAGE),-k $(STORAGE))

# About half an hour: not a part of `make test`.
lab-test-long: setup
	@$(PYTHON) -m pytest -q tests/lab -m long

package-build-test: setup
	@$(PYTHON) -m pytest -q tests/packaging/test_build.py

# Installs in clean roots and boots them: minutes, so not a part of `make test`.
package-test: setup
	@$(PYTHON) -m pytest -q tests/packaging

browser-test: setup
	@$(PYTHON) -m pytest -q tests/browser

# A real sanlock's own times pass in it: not a part of `make check`.
contract-test: setup
	@$(PYTHON) -m pytest -q tests/contract

test: setup
	@scripts/test-all

packages: setup
	@$(PYTHON) packaging/build.py packages

deb: setup
	@$(PYTHON) packaging/build.py deb debian12 debian13

rpm: setup
	@$(PYTHON) packaging/build.py rpm

release-check: setup
	@$(PYTHON) packaging/build.py release-check

# KEY: gpg's secret key that signs it.
release: setup
	@$(PYTHON) packaging/build.py release --key "$(KEY)" $(if $(SNAPSHOT),--snapshot)

demo: setup
	@$(PYTHON) -m tests.lab demo $(if $(STORAGE),--storage $(STORAGE)) $(if $(VMS),--vms $(VMS))

demo-sim:
	@[ -x $(PYTHON) ] || scripts/setup --python-only
	@$(PYTHON) -m tests.simulation demo

simulate:
	@[ -x $(PYTHON) ] || scripts/setup --python-only
	@$(PYTHON) -m tests.simulation run --hosts $(HOSTS) \
		$(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(if $(TRACE),--trace)

# What has run is in build/nightly; the same command goes on where it stopped.
nightly:
	@[ -x $(PYTHON) ] || scripts/setup --python-only
	@$(PYTHON) -m tests.simulation nightly --hosts $(HOSTS) \
		$(if $(filter command,$(firstword $(origin SEEDS))),--seeds $(SEEDS)) \
		$(if $(PART),--part $(PART))

mutation: setup
	@.venv/bin/mutmut run
	@.venv/bin/mutmut results

bench: setup
	@$(PYTHON) -m tests.bench

# RUNS=20 of each kind take about three hours.
bench-takeover: setup
	@$(PYTHON) -m tests.bench takeover --runs $(or $(RUNS),20)

lab-down:
	@$(PYTHON) -m tests.lab down

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis mutants *.egg-info
