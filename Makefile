# make demo | test | lint | test-oldest | clean.  PYTHON chooses the interpreter that environments are made with.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= runs/demo
SEED ?= 0

.PHONY: demo test lint test-oldest clean

# stamps are made anew when the file they install from changes
$(VENV)/.core: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.test: $(VENV)/.core pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/.lint: $(VENV)/.core pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/python demo/demo.py --output_dir $(DEMO) --seed $(SEED)

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/mypy

# the lowest versions that requirements.txt allows, each `>=` read as `==`
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	sed 's/>=/==/' requirements.txt > .venv-oldest/requirements.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-oldest/requirements.txt \
		'pytest==8.0' 'transformers==4.46.0' 'pyarrow==15.0' 'tensorboard==2.14' 'numpy==1.26.0'
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	.venv-oldest/bin/python -m pytest

clean:
	rm -rf .venv .venv-oldest runs phantoms .pytest_cache .ruff_cache .mypy_cache blip.egg-info
