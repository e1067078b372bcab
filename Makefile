# `make demo` and `make test` need Python 3.11+ and make, nothing else: the first one to run makes .venv.
PYTHON ?= python3
ADDONS_PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test parity timm beam addons slow lint clean

demo: $(INSTALLED)
	$(BIN)/python -m tools.demo

test: $(INSTALLED)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Against PyTorch's models, and the models themselves on the other backends of Keras.
parity: $(VENV)/installed-parity
	$(BIN)/python -m pytest -m "parity and not slow"

# An environment of its own: torchvision has to be built for the very torch that it meets.
timm: .venv-timm/installed
	.venv-timm/bin/python -m pytest -m timm

.venv-timm/installed: setup.cfg pyproject.toml constraints.txt
	test -x .venv-timm/bin/python || $(PYTHON) -m venv .venv-timm
	.venv-timm/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,timm]"
	@touch $@

# Apache Beam needs older versions of some packages than constraints.txt has: an environment of its own.
beam: .venv-beam/installed
	.venv-beam/bin/python -m pytest -m beam

.venv-beam/installed: setup.cfg pyproject.toml
	test -x .venv-beam/bin/python || $(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,beam]"
	@touch $@

# The tests run in $(VENV) and start TensorFlow 2.15 with tensorflow-addons, which Keras 3 cannot be installed with.
addons: $(INSTALLED) .venv-addons/installed
	$(BIN)/python -m pytest -m addons

.venv-addons/installed: examples/addons_requirements.txt
	test -x .venv-addons/bin/python || $(ADDONS_PYTHON) -m venv .venv-addons
	.venv-addons/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2] if not (3, 11) <= sys.version_info[:2] < (3, 14) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,demo]"
	@touch $@

$(VENV)/installed-parity: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[parity]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-addons .venv-beam .venv-timm *.egg-info pipeline/__pycache__
