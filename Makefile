# The environment is .venv, or VENV=DIR; PYTHON=python3.12 chooses the interpreter.
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python

.PHONY: demo test quick lint install install-dev

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -e ".[dev]"
	touch $@ $(VENV)/.installed

# Train the default experiment, sample it, and say where the pictures are.
demo: install
	$(RUN) train.py run_id=demo
	$(RUN) -m diffusion sample run=runs/tissue_pixel/demo overwrite=true
	@echo "pictures:"
	@ls -1 runs/tissue_pixel/demo/sample/grid.png runs/tissue_pixel/demo/sample/trajectory.gif runs/tissue_pixel/demo/figures/loss.png

test: install-dev
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: install-dev
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: install-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
