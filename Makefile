PORT ?= 8000
# The first that works: a Python manager may lack the version that .python-version names.
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11 "env PYENV_VERSION=$$(pyenv global 2>/dev/null | \
	head -1) python3" /usr/bin/python3; do $$each -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo "$$each" && break; done)
EXPRESS = bench/contestants/express
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help run simulate test lint screenshot bench bench-growth bench-failure port

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: port .venv/installed ## Start the receiver on 127.0.0.1, port 8000 (PORT=...)
	@echo "Takes status updates at http://127.0.0.1:$(PORT)/webhooks/status-update, shows calls at http://127.0.0.1:$(PORT)/"
	@echo "Next, in another terminal: make simulate$(if $(filter 8000,$(PORT)),, PORT=$(PORT))"
	@.venv/bin/flask run --port $(PORT)

simulate: port .venv/installed ## Post made-up calls to it
	@.venv/bin/flask simulate --url http://127.0.0.1:$(PORT)

test: lint ## Lint, then run every test
	@.venv/bin/pytest -q -n 2

lint: .venv/test ## Check the code's style
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

screenshot: .venv/test ## Take the README's picture again (needs chromium)
	@.venv/bin/python -m tests.screenshot docs/dashboard.png

bench: .venv/bench $(EXPRESS)/node_modules ## Measure what an update costs (ROUNDS=5)
	@.venv/bin/python -m bench.cost

bench-growth: .venv/installed ## Measure it with a million updates kept
	@.venv/bin/python -m bench.growth

bench-failure: .venv/bench $(EXPRESS)/node_modules ## Measure it while a CRM fails, and after SIGKILL
	@.venv/bin/python -m bench.failure

$(EXPRESS)/node_modules: $(EXPRESS)/package.json
	@if command -v npm >/dev/null; then echo "Installing into $@" && cd $(EXPRESS) && \
		npm install --silent --no-package-lock --no-audit --no-fund && touch node_modules; \
		else echo "Express + BullMQ is left out, as there is no npm"; fi

.venv/bench: .venv/test bench/requirements.txt
	@echo "Installing the benchmarks' own into .venv"
	@.venv/bin/pip install --quiet -r bench/requirements.txt
	@touch $@

.venv/test: .venv/installed requirements-dev.txt
	@echo "Installing what tests need into .venv"
	@.venv/bin/pip install --quiet -r requirements-dev.txt
	@touch $@

.venv/installed: requirements.txt
	@echo "Installing into .venv"
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet -r requirements.txt
	@touch $@

port:
	@$(if $(shell [ '$(PORT)' -ge 1 ] 2>/dev/null && [ '$(PORT)' -le 65535 ] && echo valid),,\
		$(error PORT must be a number from 1 to 65535))
