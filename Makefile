# Everything a developer does. `make run` and `make test` need Python 3.11 or later, make and git, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# How many processes test at once, each with a database of its own; a database that is named is one.
TESTERS ?= $(if $(value TEST_DB_CONN_STR),0,auto)

.PHONY: run test lint bench crash-test clean

run: .venv/run
	@$(BIN)/python application.py --dev

test: .venv/dev
	$(BIN)/pytest --numprocesses=$(TESTERS) --maxprocesses=4 --dist=loadfile --cov --cov-report=term-missing:skip-covered

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python -m benchmarks

crash-test: .venv/dev
	$(BIN)/python -m tests.crash

clean:
	rm -rf .venv var .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or later is needed. Name one: make PYTHON=python3.13 $(MAKECMDGOALS)'; exit 1; }
	@echo 'Making a virtual environment in .venv ...'
	@$(PYTHON) -m venv .venv

.venv/run: requirements.txt | .venv/bin/python
	@echo 'Installing the pinned packages ...'
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev: requirements.txt requirements-celery.txt requirements-dev.txt | .venv/bin/python
	@echo 'Installing the pinned packages and the test tools ...'
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/run
