# make run, make test: each does all its own set-up in .venv, once, and again where a pin or a definition changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --no-input --no-compile --quiet --constraint constraints.txt

# the first run compiles what it imports, a tenth of what pip would: so let Python write that down
export PYTHONDONTWRITEBYTECODE :=

# core first, then each plugin as the distribution of its own that it is
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
DEFINITIONS := pyproject.toml constraints.txt
# the peer that speeds are compared with; nothing else needs it
TRL := .cache/trl
BUILD_DOCS := $(BIN)/sphinx-build --fail-on-warning --quiet docs build/docs

# $(call timed,NAME,COMMAND): run a part and say how long it took
define timed
@echo '$(2)'; start=$$(date +%s); $(2) && echo "took $$(( $$(date +%s) - start )) s: $(1)"
endef

.PHONY: help run test fast fix docs wheels benchmark clean
help:
	@echo "make run    install into $(VENV) and train DPO on this machine"
	@echo "make test   install everything, then format, lint, types and all tests, a real server's included"
	@echo "make fast   the tests that take seconds"
	@echo "make fix    format, and repair what the linter can"
	@echo "make docs   build the documentation site into build/docs; a warning is an error"
	@echo "make wheels build every distribution into dist"
	@echo "make benchmark  a training step beside TRL's, on this machine; TRL gets an environment of its own"
	@echo "make clean  remove what these made, the environments included"

run: $(VENV)/installed-run
	$(BIN)/mint-train --loss dpo

test: $(VENV)/installed-dev
	$(call timed,format,$(BIN)/ruff format --check .)
	$(call timed,lint,$(BIN)/ruff check .)
	$(call timed,imports,$(BIN)/lint-imports --no-logo)
	$(call timed,types,$(BIN)/mypy)
	$(call timed,docs,$(BUILD_DOCS))
	$(call timed,tests,$(BIN)/pytest --numprocesses 2 --dist loadgroup)

fast: $(VENV)/installed-dev
	$(BIN)/pytest -m "not skyrl and not slow"

fix: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-dev
	$(BUILD_DOCS)

wheels: $(VENV)/installed-dev
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --quiet --wheel-dir dist . $(PLUGINS)

benchmark: $(VENV)/installed-dev $(TRL)/installed
	$(BIN)/python benchmarks/local_vs_trl.py --trl-python $(TRL)/bin/python

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed-run: $(VENV)/created $(DEFINITIONS) plugins/mint-train-dpo/pyproject.toml
	$(call timed,install,$(INSTALL) --editable . --editable plugins/mint-train-dpo)
	@touch $@

# dependency groups came with pip 25.1
$(VENV)/installed-dev: $(VENV)/created $(DEFINITIONS) $(PLUGINS:=/pyproject.toml)
	$(call timed,pip,$(BIN)/python -m pip install --no-input --quiet --upgrade "pip>=25.1")
	$(call timed,install,$(INSTALL) --editable . $(addprefix --editable ,$(PLUGINS)) --group dev)
	@touch $@ $(VENV)/installed-run

$(TRL)/installed: $(VENV)/created constraints.txt
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --no-input --quiet --constraint constraints.txt torch peft trl==1.16.0
	@touch $@
