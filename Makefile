# SPDX-License-Identifier: Apache-2.0
# Each target sets up what it needs, as root also packages of the system. `make help` lists them.
#
#   PYTHON=/usr/bin/python3.12   another interpreter for .venv (3.10 or later)
#   CC=…                         another compiler
#   ARGS='-k cgroup -x'          arguments for pytest, the benchmarks, the fuzzer or the kernel runner

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
ARGS ?=
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## a development environment in .venv, with every extra
	@tools/packages.sh build run
	@tools/bootstrap.sh dev
	@echo "ready: . .venv/bin/activate"

.PHONY: demo
demo: ## build, then run a pod with a web server and a sidecar
	@tools/packages.sh build run
	@tools/bootstrap.sh
	@$(BIN)/python examples/web_pod.py

.PHONY: test
test: ## the test suite; as root: as root, then again as an ordinary user
	@tools/packages.sh build run
	@tools/bootstrap.sh test
	@tools/test.sh $(ARGS)

.PHONY: test-user
test-user: ## the test suite as an ordinary user only
	@tools/packages.sh build run
	@tools/bootstrap.sh test
	@if [ "$$(id -u)" = 0 ]; then tools/test-as-user.sh $(ARGS); else tools/test.sh $(ARGS); fi

.PHONY: test-kernels
test-kernels: ## the tests that depend on the kernel, on other kernels in QEMU, with cgroup v2
	@tools/packages.sh build run kernels
	@tools/bootstrap.sh test
	@$(BIN)/python tools/vm/test_kernels.py $(ARGS)

.PHONY: fuzz
fuzz: ## the checker of plans under a coverage-guided fuzzer; ARGS=600 for 600 s
	@tools/packages.sh build fuzz
	@tools/bootstrap.sh test
	@tools/fuzz.sh $(ARGS)

.PHONY: soak
soak: ## 10,000 sandboxes in one process, 1,000 with limits, 1,000 pods, 500 with addresses: nothing may grow
	@tools/packages.sh build run
	@tools/bootstrap.sh test
	@NSBOX_SOAK=full $(BIN)/python -m pytest -p no:cacheprovider -s -o faulthandler_timeout=3600 tests/soak tests/network/test_many.py $(ARGS)

.PHONY: lint
lint: ## ruff, mypy --strict, clang-format, gcc -fanalyzer with warnings as errors
	@tools/packages.sh build
	@tools/bootstrap.sh lint
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	@echo $(BIN)/clang-format --dry-run -Werror csrc
	@find csrc -name '*.[ch]' -print0 | xargs -0 $(BIN)/clang-format --dry-run -Werror
	tools/analyze.sh

.PHONY: format
format: ## rewrite Python and C in the project's format
	@tools/bootstrap.sh lint
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format
	find csrc -name '*.[ch]' -print0 | xargs -0 $(BIN)/clang-format -i

.PHONY: docs
docs: ## the documentation in docs/_build/html, and its examples run
	@tools/bootstrap.sh docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -b doctest docs docs/_build/doctest
	@echo "docs/_build/html/index.html"

.PHONY: bench
bench: ## measure how long spawning takes
	@tools/packages.sh build run
	@tools/bootstrap.sh bench
	@$(BIN)/python benchmarks/run.py $(ARGS)

.PHONY: bench-compare
bench-compare: ## the last two runs of make bench ARGS=--history, or ARGS='OLD NEW', as ratios
	@tools/bootstrap.sh
	@$(BIN)/python benchmarks/compare.py $(ARGS)

.PHONY: bench-record
bench-record: ## measure everything (many minutes, a quiet machine) and renew docs/benchmarks.rst
	@tools/packages.sh build run
	@tools/bootstrap.sh bench
	@mkdir -p .cache
	@$(BIN)/python benchmarks/run.py --targets --json .cache/bench.json $(ARGS) || [ $$? = 1 ]
	@$(BIN)/python benchmarks/page.py .cache/bench.json

.PHONY: clean
clean: ## remove what make and the tools made, .venv too
	rm -rf .venv .cache/fuzz build dist *.egg-info docs/_build .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	rm -f nsbox/nsbox-init nsbox/_ffi*.so
	find . -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +
