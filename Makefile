# make demo       trains, evaluates and draws a small detector on a generated data set
# make test       runs the tests, but for those that take minutes
# make test-slow  runs those, but for searches and rehearsals of several minutes each
# make test-all   runs all of them
# make coverage   runs what make test runs, and says which lines of the project it reached
# make lint       checks style and types
# make env        makes the environment in .venv and builds the operators of models/ops into it
# make operators-openvino   builds them as nodes of OpenVINO, too; needs cmake
# The others begin with that too. To use another environment, which has them already: make test PYTHON=/path/to/python

VENV := .venv
PYTHON := $(VENV)/bin/python
OPERATORS := $(VENV)/operators-built
ENVIRONMENT := $(if $(filter $(VENV)/%,$(PYTHON)),$(OPERATORS))

PYTEST := $(PYTHON) -m pytest -q -n 2 --dist worksteal
FORKING := $(wildcard tests/tools/test_soak*.py)  # in a process of their own: a fork of a process in which PyTorch has threads cannot train
TOGETHER := $(addprefix --ignore=,$(FORKING)) tests

.PHONY: demo env test test-slow test-all coverage lint style types
demo: $(ENVIRONMENT)
	$(PYTHON) tools/demo.py

env: $(OPERATORS)

test: $(ENVIRONMENT)
	$(PYTEST) -m "not slow" $(TOGETHER)
	$(PYTEST) -m "not slow" $(FORKING)

test-slow: $(ENVIRONMENT)
	$(PYTEST) -m "slow and not soak" $(TOGETHER)
	$(PYTEST) -m "slow and not soak" $(FORKING)

test-all: $(ENVIRONMENT)
	$(PYTEST) $(TOGETHER)
	$(PYTEST) $(FORKING)

coverage: $(ENVIRONMENT)
	$(PYTEST) -m "not slow" --cov --cov-report= $(TOGETHER)
	$(PYTEST) -m "not slow" --cov --cov-append --cov-report=term:skip-covered $(FORKING)

lint: style types

style: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .

types: $(ENVIRONMENT)
	$(PYTHON) -m mypy

$(VENV)/bin/python: requirements.txt requirements-deploy.txt requirements-loggers.txt requirements-dev.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --upgrade pip
	$(VENV)/bin/pip install -r requirements-dev.txt
	touch $(VENV)/bin/python

$(OPERATORS): $(VENV)/bin/python models/ops/setup.py $(shell find models/ops/src -type f)
	$(VENV)/bin/pip install --no-build-isolation --no-deps --force-reinstall ./models/ops
	touch $(OPERATORS)

NODES := models/ops/build/openvino
.PHONY: operators-openvino
operators-openvino: $(ENVIRONMENT)  # cmake knows what is up to date, headers of another OpenVINO included
	cmake -S models/ops/src/openvino -B $(NODES) \
		-DOpenVINO_DIR="$$($(PYTHON) -c 'from openvino.utils import get_cmake_path; print(get_cmake_path())')"
	cmake --build $(NODES) --parallel 2

# make docs   makes the pages of docs/ a site, site/index.html, and checks their links. $(PYTHON) gets requirements-docs.txt
.PHONY: docs
docs: $(if $(filter $(VENV)/%,$(PYTHON)),$(VENV)/bin/python)
	$(PYTHON) -m pip install --quiet -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
