# Every target sets up what it needs; `make adapt` and `make test` work on a fresh clone.
PYTHON ?= python3
DATA   ?=
PARAMS ?=
NAME   ?=
CASES  ?=

VENV   := .venv
READY  := $(VENV)/.ready

.PHONY: env adapt repro test check lint bench lock up down clean

env: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python >= 3.11 is needed; name one: make PYTHON=python3.12 ...")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r infra/bootstrap.lock
	$(VENV)/bin/uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python --require-hashes -r requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation --editable .
	touch $(READY)

adapt: env
	$(VENV)/bin/regraft adapt $(if $(DATA),--data "$(DATA)") $(if $(PARAMS),--params "$(PARAMS)") $(if $(NAME),--name "$(NAME)")

repro: env
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" dvc repro

test: env
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --durations 30 --durations-min 5

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

check: lint test

# All figures into .regraft/bench.json and docs/benchmarks.md: 20 minutes on an idle machine, 12 GB of disk.
bench: env
	$(VENV)/bin/python -m tests.bench $(CASES)

up: env
	$(VENV)/bin/regraft up

down: env
	$(VENV)/bin/regraft down

# Resolves anew: all extras, every platform and Python >= 3.11, with hashes, without URLs.
lock: env
	$(VENV)/bin/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 --generate-hashes \
	  --extra demo --extra dev --no-emit-index-url --no-annotate --no-header --quiet -o requirements.lock
	echo 'uv' | $(VENV)/bin/uv pip compile - --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --quiet -o infra/bootstrap.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
