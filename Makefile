# `make demo` trains the quickstart and prints its table, `make test` checks everything.
# Both need nothing but Python >= 3.10; another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   := runs/demo/$(shell date +%Y%m%d-%H%M%S)

# The install links to the sources file by file (editable_mode=strict: the mode that mypy can follow). Edits are live;
# a folder is newer than the stamp when a file was added or removed, and only then are the links made anew.
FOLDERS := $(shell find framework probes datamodules triton_kernels -type d -not -name __pycache__)
LINKS   := build/links

.PHONY: help demo test docs clean

help:
	@echo "make demo   train the quickstart (TPRRNN and LSTM), print the result table, write the report"
	@echo "make test   ruff, mypy and all tests but the slow ones"
	@echo "make docs   build the documentation into site/"
	@echo "make clean  remove the environment and everything that was built"

# One thread: at these sizes a second one only waits for the first.
demo: export OMP_NUM_THREADS = 1
demo: $(LINKS)
	$(BIN)/algornn fit --config quickstart --run_dir $(DEMO)/quickstart
	$(BIN)/algornn fit --config quickstart_lstm --run_dir $(DEMO)/quickstart_lstm
	$(BIN)/algornn report $(DEMO)/quickstart $(DEMO)/quickstart_lstm
	@echo; echo "next: source $(BIN)/activate; algornn list recipes"

# All three run even when one fails, so that one call shows everything there is to mend. A process per core, up to 8.
test: export OMP_NUM_THREADS = 1
test: $(LINKS)
	@failed=0; \
	$(BIN)/ruff check . || failed=1; \
	$(BIN)/mypy || failed=1; \
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow" || failed=1; \
	exit $$failed

docs: $(LINKS)
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]" --config-settings editable_mode=strict
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(VENV)/dependencies: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("algornn needs Python >= 3.10, got %s: make PYTHON=python3.12" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time takes minutes: torch is large)"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]" --config-settings editable_mode=strict
	@touch $@

$(LINKS): $(VENV)/dependencies $(FOLDERS)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
	@touch $@
