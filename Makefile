# make demo   trains, evaluates and draws a small detector on a generated data set
# make test   runs all tests
# make env    makes the environment in .venv and builds the operators of models/ops into it
# The others begin with that too. To use another environment, which has them already: make test PYTHON=/path/to/python

VENV := .venv
PYTHON := $(VENV)/bin/python
OPERATORS := $(VENV)/operators-built
ENVIRONMENT := $(if $(filter $(VENV)/%,$(PYTHON)),$(OPERATORS))

.PHONY: demo test lint env
demo: $(ENVIRONMENT)
	$(PYTHON) tools/demo.py

env: $(OPERATORS)

test: $(ENVIRONMENT) lint
	$(PYTHON) -m pytest -q -n 2 --dist worksteal tests

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

# make docs   makes the pages of docs/ a site, site/index.html, and checks their links. $(PYTHON) gets requirements-docs.txt
.PHONY: docs
docs: $(if $(filter $(VENV)/%,$(PYTHON)),$(VENV)/bin/python)
	$(PYTHON) -m pip install --quiet -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
