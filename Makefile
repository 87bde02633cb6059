# `make` alone lists the targets. A row of .env can be overridden on the command line: make up HTTP_PORT=8080
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
STACK := $(PYTHON) -m stack
# uv from the system, or one of the virtual environment's own.
UV := $(shell command -v uv || echo .uv/bin/uv)

.PHONY: help up down logs ps trace learn check doctor test unit loadtest users reload deploy bench lab capacity soak zero-loss mutate clean

help: ## this list
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Run

up: .venv ## start the stack (Compose where an engine answers, else plain processes) and wait until it answers
	@$(STACK) up

down: .venv ## stop it, with every request answered
	@$(STACK) down

ps: .venv ## what runs
	@$(STACK) ps

logs: .venv ## follow the logs
	@$(STACK) logs

trace: .venv ## what each tier has logged of one request (ID=its-request-id)
	@ID="$(ID)" $(STACK) trace

reload: .venv ## fresh workers and nginx's configuration; plain processes also take new code, containers take it from make deploy
	@$(STACK) reload

deploy: .venv ## build the app and replace the running containers by the new ones, with no request lost
	@$(STACK) deploy

learn: .venv ## how a server accepts connections, in ten exercises: a list, or one of them (N=3)
	@$(PYTHON) -m learn $(N)

doctor: .venv ## whether this machine and these rows are ready to serve strangers (docs/production.md)
	@$(STACK) doctor

clean: down ## stop it, and remove what it and the tests left: volumes, images, reports, caches
	@if docker version >/dev/null 2>&1; then \
	    docker compose down --volumes --rmi local --remove-orphans && docker image prune --force --filter \
	    label=com.docker.compose.project="$$($(PYTHON) -c 'from stack.settings import project; print(project())')" >/dev/null; fi
	@rm -rf "$$($(PYTHON) -c 'from stack import native; print(native.folder())')"{,.deploy.lock}
	@rm -rf reports .pytest_cache .mypy_cache .ruff_cache .venv .uv
	@find . -name __pycache__ -prune -exec rm -rf {} +

##@ Measure

loadtest: .venv ## load the running stack and hold it to the objectives of .env; the report goes to reports/
	@$(STACK) loadtest

users: .venv ## write a first loadtest/users.py from the running app's schema (OPENAPI=/its/path names another)
	@$(STACK) users

capacity: .venv ## find the highest rate at which the objectives of .env hold, and the rows for it (WRITE=1 writes them)
	@$(PYTHON) -m bench.capacity

bench: .venv ## what the shell and the proxy cost, measured side by side
	@$(PYTHON) -m bench $(EXPERIMENTS)

# APP_MODULE and PATHS on the command line name another app (lab asks for the first of the paths, capacity for all):
# make lab APP_MODULE=app.yours:app PATHS=/items
lab: .venv ## what each choice costs, on one page with pictures: reports/lab/index.html (EXPERIMENTS="shell proxy" for some)
	@$(PYTHON) -m bench lab $(EXPERIMENTS)

##@ Prove

check: .venv ## settings, timeout budget, nginx and Compose configuration, code: all that can be known without a start
	@$(STACK) check; status=$$?; $(PYTHON) -m proofs.settings || status=1; exit $$status

test: .venv/compiled ## every test: the code's, and the proofs against real stacks, in both ways of running
	@$(PYTHON) -m pytest --numprocesses 3 --dist loadgroup $(PYTEST)

unit: .venv ## the code's tests alone, in less than a minute
	@$(PYTHON) -m pytest --numprocesses 2 tests

zero-loss: .venv ## each event with and without the setting that makes it harmless; writes the table of docs/zero-loss.md
	@$(PYTHON) -m proofs.zero_loss $(EVENTS)

soak: .venv ## a million requests while workers, replicas and nginx are replaced over and over
	@$(PYTHON) -m proofs.soak

mutate: .venv ## revert one setting at a time and see a proof fail (ONLY=part-of-a-name for some); writes docs/settings.md, docs/evidence.md
	@$(PYTHON) -m proofs.mutate "$(ONLY)"

.venv: pyproject.toml uv.lock $(filter .uv/bin/uv,$(UV))
	@$(UV) sync --quiet --locked
	@touch .venv

# Where Python may not keep what it compiles, as in many an image, each process of a test would compile its libraries anew.
.venv/compiled: .venv
	@$(PYTHON) -m compileall -qq -j 0 .venv/lib app stack live loadtest proofs
	@touch $@

.uv/bin/uv:
	@python3 -m venv .uv && .uv/bin/pip install --quiet 'uv>=0.13,<0.14'
