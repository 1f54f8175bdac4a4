# make demo | demo-blip2 | demo-studies | test | test-quick | test-oldest | lint | docs | clean
# PYTHON is the interpreter that environments are made with, VENV the folder of the environment.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN = $(VENV)/bin
DEMO ?= runs/demo
SEED ?= 0
# a file's tests stay in one process, which makes the fixtures of the file once; tests/conftest.py orders the files
PYTEST = -m pytest -n 2 --dist loadfile --no-loadscope-reorder
INSTALL = -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-blip2 demo-studies test test-quick test-oldest lint docs clean

# stamps are made anew when the file they install from changes
$(VENV)/.core: requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) -r requirements.txt
	$(BIN)/python $(INSTALL) --no-deps --editable .
	touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.core
	$(BIN)/python $(INSTALL) --editable '.[$*]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/python demo/demo.py --output_dir $(DEMO) --seed $(SEED)

demo-blip2: $(VENV)/.core
	$(BIN)/python $(INSTALL) --editable '.[blip2]'
	$(BIN)/python demo/demo_blip2.py --output_dir runs/demo_blip2 --seed $(SEED)

demo-studies: $(VENV)/.core
	$(BIN)/python demo/studies.py --output_dir runs/studies --seed $(SEED)

# the models of the tests are tiny: more threads would wait for each other more than they work
test test-quick test-oldest: export OMP_NUM_THREADS = 1

test: $(VENV)/.test
	$(BIN)/python $(PYTEST)

test-quick: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "not slow"

# the lowest versions that requirements.txt and the extras allow
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/lowest_versions.py > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python $(INSTALL) -r $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python $(INSTALL) --no-deps --editable .
	$(OLDEST)/bin/python $(PYTEST)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest tests/test_names.py

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-oldest runs phantoms site build dist .pytest_cache .ruff_cache .mypy_cache blip.egg-info
