# Everything starts here. Each target prepares what it needs, on a fresh clone too; needs only
# make and Python 3.11 or newer (PYTHON=... chooses one).

PYTHON  ?= python3
WORKERS ?= 2
BIN     := .venv/bin
DEMO    ?=
ARGS    ?=
SEEDS   ?= 10

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo serve web install install-full test test-full lint test-web debian zoo clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## train a network that falls ill, and see the pager name the layer (DEMO=healthy: it stays well)
	@$(PYTHON) tools/bootstrap.py demo
	@$(BIN)/gradwarden demo $(if $(DEMO),--$(DEMO)) $(ARGS)

serve: ## run the service and the dashboard on this machine
	@$(PYTHON) tools/bootstrap.py demo
	@$(BIN)/gradwarden serve $(ARGS)

web: ## build the dashboard where its sources changed
	@$(PYTHON) tools/bootstrap.py demo

install: ## prepare .venv with everything that development needs
	@$(PYTHON) tools/bootstrap.py dev

install-full:
	@$(PYTHON) tools/bootstrap.py full

test: install debian lint test-web ## lint, types, web tests and the core tests
	@$(BIN)/python -m pytest -m "not full" -n $(WORKERS) --dist loadfile --durations=15 $(ARGS)

test-full: install-full debian lint test-web ## the same with heavy libraries and long chaos
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=30 $(ARGS)

zoo: install ## train small real networks, sick and healthy, and print what the detectors said (SEEDS=10)
	@$(BIN)/python -m tests.zoo --seeds $(SEEDS) $(ARGS)

lint: install ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test-web: install
	@$(BIN)/python tools/web.py check test

debian: install
	@$(BIN)/python tools/debian.py

soak-detect: install ## simulated healthy trainings through every detector: how often is one false (ARGS="--steps 100000")
	@$(BIN)/python benchmarks/soak_detect.py $(ARGS)

clean: ## remove what was built, but not .venv
	@rm -rf dist build dashboards/web/dist client_sdk/gradwarden/stats/kernel.so client_sdk/gradwarden/stats/kernel.sha256 service/gradwarden_server/store/columns/kernel.so service/gradwarden_server/store/columns/kernel.sha256 .mypy_cache .ruff_cache .pytest_cache .hypothesis .screenshots
	@find . -path ./.venv -prune -o -path '*/node_modules' -prune -o -name __pycache__ -type d -print0 \
		| xargs -0 rm -rf
