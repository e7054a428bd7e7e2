# tracekit: `make demo` shows the main job on a live guest, `make test` passes the tests.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint typecheck unit live bench lab fuzz faults soak dist-check clean

help:  ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Virtual environment and, as root on Debian, bcc
	@.ci/setup demo

demo: setup  ## Record a real guest, replay what-ifs, print the table, write the report
	@.venv/bin/tracekit demo

test:  ## Set up, lint, type-check and run every test this host can run
	@.ci/setup test
	@$(MAKE) --no-print-directory lint unit
	@$(MAKE) --no-print-directory -j2 typecheck live  # one waits for guests, the other does not mind

check: lint typecheck  ## Lint, format, types and the one-way import rule

lint:
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

typecheck:
	@nice -n 19 .ci/typecheck

unit:  ## Only the tests that need no guest and no root, one file of them on each CPU
	@.venv/bin/pytest -m 'not live' -n logical --dist loadfile

live:  ## Only the tests on real guests, one after another: they count what the kernel does
	@.venv/bin/pytest -m live

bench:  ## Benchmarks (minutes; never part of make test)
	@.venv/bin/pytest tests/bench/bench_*.py --benchmark-only -o python_files='bench_*.py' -o norecursedirs=''

lab:  ## The recorder inside a KVM host with nested paging (minutes; never part of make test)
	@.venv/bin/pytest tests/lab -o norecursedirs=build

fuzz:  ## Fuzz every reader, 4 minutes each (SECONDS_EACH=60); never part of make test
	@.venv/bin/pip install -q -c constraints.txt atheris || echo "no atheris for this Python: hypothesis instead"
	@mkdir -p build
	@for target in $$(.venv/bin/python -m tests.fuzz); do \
	  .venv/bin/python -m tests.fuzz $$target $${SECONDS_EACH:-240} 2>build/fuzz-$$target.log || exit 1; \
	done

faults:  ## Full disks, killed recorders, two recorders, …: is every event accounted for? (minutes)
	@.venv/bin/python -m tests.endurance.faults

soak:  ## Half an hour at 200,000 events/s (MINUTES=30): memory, validity, accounts
	@.venv/bin/python -m tests.endurance.soak $${MINUTES:-30}

dist-check:  ## Wheel and sdist, each installed alone and its demo run, on every Python 3.11+ found
	@.ci/dist-check

clean:  ## Remove everything that setup and builds made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
