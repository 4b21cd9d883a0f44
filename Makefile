# Two commands on a fresh machine: `make demo` and `make test`. `make` alone lists the rest.
# Needs python3 (3.11 or newer, with venv), make and a C library; everything else comes with pip.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

# Which Python makes .venv: `make PYTHON=/path/to/python3.13 test`.
PYTHON ?= $(firstword $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name; done) python3)
# How many processes run the tests.
WORKERS ?= 2
# More arguments for pytest: `make test ARGS="tests/local -x"`.
ARGS ?=
# More arguments for the resolver: `make lock UPGRADE=--upgrade`.
UPGRADE ?=
# What the contract must not break with.
AGAINST ?= main

BIN := $(CURDIR)/.venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
SOURCES := server clients/python/src tests bench tools examples
MIGRATIONS := migrations/[0-9]*.sql
# Ends what a command started even when make itself is killed.
LEASH = exec $(BIN)/python -I -S server/trunkline_server/local/leash.py $$PPID self 15 -1

VENV := .venv/.made
INSTALLED := .venv/.installed

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(INSTALLED) ## Start everything, take the tour with the real client, stop everything
	@$(LEASH) $(BIN)/trunklined demo

.PHONY: dev
dev: $(INSTALLED) ## Start everything and leave it running; prints the address and credentials
	@$(LEASH) $(BIN)/trunklined dev

.PHONY: test
test: $(INSTALLED) ## Run the tests (WORKERS=2, ARGS="tests/jobs -x")
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: check
check: $(INSTALLED) ## Everything CI checks: format, lint, types, contract, migrations, tests
	@$(MAKE) check-format lint typecheck check-contract check-sql check-generated
	@$(MAKE) test

.PHONY: check-format
check-format: $(INSTALLED)
	@echo "== format" && $(BIN)/ruff format --check $(SOURCES)

.PHONY: lint
lint: $(INSTALLED) ## Lint the Python code and check who imports whom
	@echo "== lint" && $(BIN)/ruff check $(SOURCES)
	@echo "== imports" && $(BIN)/lint-imports

.PHONY: typecheck
typecheck: $(INSTALLED) ## Check the types of all Python code
	@echo "== types" && $(BIN)/mypy $(SOURCES)

.PHONY: check-contract
check-contract: $(INSTALLED)
	@echo "== contract" && $(BIN)/buf lint && $(BIN)/buf format --diff --exit-code --exclude-path protos/buf
	@if git cat-file -e "$(AGAINST):buf.yaml" 2>/dev/null; \
	then $(BIN)/buf breaking --against ".git#ref=$(AGAINST)"; \
	else echo "no contract at git revision '$(AGAINST)' to compare with"; fi

.PHONY: check-sql
check-sql: $(INSTALLED)
	@echo "== migrations" && $(BIN)/squawk $(MIGRATIONS)

.PHONY: check-generated
check-generated: $(INSTALLED)
	@echo "== generated files" && $(BIN)/python -m tools.gen --check
	@$(BIN)/python -m tools.reference --check && $(BIN)/python -m tools.reference_config --check
	@$(BIN)/python -m tools.schema --check

.PHONY: gen
gen: $(INSTALLED) ## Generate stubs, reference pages and schema.sql from what they are made of
	@$(BIN)/python -m tools.gen
	@$(BIN)/python -m tools.reference && $(BIN)/python -m tools.reference_config
	@$(BIN)/python -m tools.schema

.PHONY: gen-go
gen-go: $(INSTALLED) ## Generate Go stubs into gen/go (needs go and the network the first time)
	@command -v go >/dev/null || { echo "gen-go needs Go (Debian: golang)" >&2; exit 1; }
	@test -x .gen-tools/protoc-gen-go-grpc || { \
		export GOBIN=$(CURDIR)/.gen-tools; \
		go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11 && \
		go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.0; }
	@PATH="$(CURDIR)/.gen-tools:$$PATH" $(BIN)/buf generate --template tools/buf.gen.go.yaml
	@echo "gen/go"

.PHONY: gen-ts
gen-ts: $(INSTALLED) ## Generate TypeScript stubs into gen/ts (needs npm and the network the first time)
	@command -v npm >/dev/null || { echo "gen-ts needs Node with npm (Debian: npm)" >&2; exit 1; }
	@test -x .gen-tools/node_modules/.bin/protoc-gen-es || \
		npm install --silent --no-fund --no-audit --prefix .gen-tools @bufbuild/protoc-gen-es@^2
	@PATH="$(CURDIR)/.gen-tools/node_modules/.bin:$$PATH" \
		$(BIN)/buf generate --template tools/buf.gen.ts.yaml
	@echo "gen/ts"

.PHONY: fmt
fmt: $(INSTALLED) ## Format the Python code and the protos, fix what lint can fix
	@$(BIN)/ruff format $(SOURCES) && $(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/buf format --write --exclude-path protos/buf

.PHONY: bench
bench: $(INSTALLED) ## Run all benchmarks and print their figures and goals
	@$(BIN)/python -m bench all

.PHONY: bench-quick
bench-quick: $(INSTALLED) ## The same benchmarks with less work
	@$(BIN)/python -m bench all --quick

.PHONY: profile
profile: $(INSTALLED) ## Draw a flame graph of one benchmark (NAME=echo)
	@$(BIN)/python -m bench profile $(NAME)

.PHONY: install
install: $(INSTALLED) ## Make .venv with everything in it; the other targets do it when needed

.PHONY: lock
lock: .lock-venv/.made ## Resolve requirements/*.in anew into requirements/*.txt (needs the network)
	@for set in lock gen server dev; do \
		echo "requirements/$$set.txt"; \
		.lock-venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--no-header --prerelease=if-necessary-or-explicit $(UPGRADE) \
			--output-file requirements/$$set.txt requirements/$$set.in || exit 1; \
	done

.PHONY: clean
clean: ## Remove all that make made, the local servers' databases included
	rm -rf .venv .gen-venv .gen-tools .lock-venv gen .trunkline build dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find server clients tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last: what was interrupted is done again.
$(VENV):
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
		"Trunkline needs Python 3.11 or newer, and %s is %d.%d: " % (sys.executable, v[0], v[1]) + \
		"install one and run `make PYTHON=/path/to/it`")' \
		|| { command -v $(PYTHON) >/dev/null || echo "Trunkline needs python3 (3.11 or newer)"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) lacks venv: install it (Debian: python3-venv)" >&2; exit 1; }
	@echo "making .venv"
	@$(PYTHON) -m venv --clear .venv
	@touch $@

$(INSTALLED): $(VENV) requirements/dev.txt pyproject.toml clients/python/pyproject.toml
	@echo "installing into .venv"
	@$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

.lock-venv/.made: requirements/lock.txt
	@$(PYTHON) -m venv --clear .lock-venv
	@.lock-venv/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@
