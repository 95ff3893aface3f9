# Sets up .venv with the locked dependencies; everything else runs inside it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The oldest that pyproject.toml allows; or say others: make test-versions VERSIONS='torch==2.12.* transformers==5.20.*' TESTS=tests/model
VERSIONS ?= $(shell sed -nE 's/^  "(torch|transformers)>=([0-9.]+)",$$/\1==\2.*/p' pyproject.toml)
TESTS ?= tests
OTHER := .venv-versions

.PHONY: demo test test-slow test-versions lint lock clean

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cairn needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV), torch first: some minutes …"
	$(BIN)/python -m pip install --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[plot,dev,e2e]'
	touch $(STAMP)

demo: $(STAMP)  ## train, evaluate and release the built-in chat model
	$(BIN)/cairn run pebble
	@echo "The command cairn is in $(BIN); once in a shell:  . $(BIN)/activate"

test: $(STAMP)  ## lint, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-versions:  ## the fast tests on other versions of torch and transformers, in a venv of its own: 5 GB where torch comes with CUDA
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	grep -vE '^(torch|transformers|tokenizers|huggingface_hub)==' requirements.lock > $(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install --disable-pip-version-check -c $(OTHER)/constraints.txt $(VERSIONS:%='%') -e '.[plot,dev]'
	$(OTHER)/bin/python -c 'import torch, transformers; print("torch", torch.__version__, "· transformers", transformers.__version__)'
	$(OTHER)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/mypy

lock:  ## write the versions in .venv into the lock file
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV) $(OTHER)
