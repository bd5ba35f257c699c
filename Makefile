# make demo   trains, evaluates and draws a small detector on a generated data set
# make test   runs all tests
# Both make the environment in .venv first. To use another one: make test PYTHON=/path/to/python

VENV := .venv
PYTHON := $(VENV)/bin/python
# Another python has its packages already.
ENVIRONMENT := $(filter $(VENV)/%,$(PYTHON))

.PHONY: demo test lint
demo: $(ENVIRONMENT)
	$(PYTHON) tools/demo.py

test: $(ENVIRONMENT) lint
	$(PYTHON) -m pytest -q -n 2 tests

lint: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .

$(VENV)/bin/python: requirements.txt requirements-dev.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --upgrade pip
	$(VENV)/bin/pip install -r requirements-dev.txt
	touch $(VENV)/bin/python
