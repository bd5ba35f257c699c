# make demo   trains, evaluates and draws a small detector on a generated data set
# make test   runs all tests
# Both first make the environment in .venv and build the operators of models/ops into it. To use another one, which has
# them already: make test PYTHON=/path/to/python

VENV := .venv
PYTHON := $(VENV)/bin/python
OPERATORS := $(VENV)/operators-built
ENVIRONMENT := $(if $(filter $(VENV)/%,$(PYTHON)),$(OPERATORS))

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

$(OPERATORS): $(VENV)/bin/python models/ops/setup.py $(shell find models/ops/src -type f)
	$(VENV)/bin/pip install --no-build-isolation --no-deps --force-reinstall ./models/ops
	touch $(OPERATORS)
