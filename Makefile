# make run, make test: each sets up .venv by itself, once, and again after a pin or a definition changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python tests/uv_install.py --quiet --constraint constraints.txt
PYTEST := $(BIN)/pytest --numprocesses 3 --dist loadgroup

# nothing is compiled while installing; the first run compiles the modules that it imports, and keeps them
export PYTHONDONTWRITEBYTECODE :=

# core first, then each plugin, which is a distribution of its own
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
EDITABLE := $(addprefix --editable ,$(PLUGINS))
DEFINITIONS := pyproject.toml constraints.txt $(PLUGINS:=/pyproject.toml)
# for --quantize; apart, as PEFT imports it wherever it is installed, and each start takes seconds longer
QUANTIZE := $(VENV)/quantize
# the trainer that speeds are compared with; nothing else needs it
TRL := .cache/trl
BUILD_DOCS := $(BIN)/sphinx-build --fail-on-warning --quiet docs build/docs

# $(call timed,NAME,COMMAND): run a part and say how long it took
define timed
@echo '$(1) ...'; start=$$(date +%s); $(2) && echo "took $$(( $$(date +%s) - start )) s: $(1)"
endef

.PHONY: help run test every-test lint types tests servers fast fix docs wheels benchmark given-data clean
help:
	@echo "make run        install into $(VENV), with all losses and plots, and train DPO on this machine"
	@echo "make test       everything that must hold: lint, types, docs, and all tests"
	@echo "make lint       format, lint and import rules"
	@echo "make types      mypy"
	@echo "make tests      the tests that need no server"
	@echo "make servers    the tests against real servers"
	@echo "make fast       the tests that take seconds"
	@echo "make fix        format, and repair what the linter can"
	@echo "make docs       build the documentation site; a warning is an error"
	@echo "make wheels     build every distribution into dist"
	@echo "make benchmark  a training step on DATA=FILE beside TRL's, which gets its own environment"
	@echo "make clean      remove what these made, the environments included"

run: $(VENV)/installed-run
	$(BIN)/mint-train --loss dpo --steps 8 --lr 5e-3 --eval-fraction 0.2 \
	  --output runs/first --overwrite
	$(BIN)/mint-train sample runs/first --prompt "How heavy is a dolphin?"

# servers are installed meanwhile; only a test that needs one which is not there yet waits for it
test: $(VENV)/installed-dev
	@$(BIN)/python tests/servers/environments.py & installing=$$!; trap "kill $$installing 2>/dev/null" EXIT; \
	$(MAKE) --no-print-directory --jobs --output-sync=target lint types docs && \
	$(MAKE) --no-print-directory every-test

every-test:
	$(call timed,tests,$(PYTEST))

lint: $(VENV)/installed-dev
	$(call timed,format,$(BIN)/ruff format --check .)
	$(call timed,lint,$(BIN)/ruff check .)
	$(call timed,imports,$(BIN)/lint-imports --no-logo)

types: $(VENV)/installed-dev
	$(call timed,types,$(BIN)/mypy)

tests: $(VENV)/installed-dev
	$(call timed,tests,$(PYTEST) -m "not server")

servers: $(VENV)/installed-dev
	$(call timed,servers,$(PYTEST) -m server)

fast: $(VENV)/installed-dev
	$(BIN)/pytest -m "not server and not slow"

fix: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-dev
	$(call timed,docs,$(BUILD_DOCS))
	@echo "The site: build/docs/index.html"

wheels: $(VENV)/installed-dev
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --quiet --wheel-dir dist . $(PLUGINS)

benchmark: given-data $(VENV)/installed-dev $(TRL)/installed
	$(BIN)/python benchmarks/local_vs_trl.py --data "$(DATA)" --trl-python $(TRL)/bin/python

given-data:
	@test -f "$(DATA)" || { echo "give a JSON file of pairs in ShareGPT form: make benchmark DATA=FILE"; exit 2; }

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-input --quiet --constraint constraints.txt uv
	@touch $@

$(VENV)/installed-run: $(VENV)/created $(DEFINITIONS)
	$(call timed,install,$(INSTALL) --editable ".[plot]" $(EDITABLE))
	@touch $@

$(VENV)/installed-dev: $(VENV)/created $(DEFINITIONS)
	$(call timed,install,$(INSTALL) --editable ".[plot]" $(EDITABLE) --group dev)
	$(call timed,install bitsandbytes,$(INSTALL) --no-deps --target $(QUANTIZE) bitsandbytes)
	@touch $@ $(VENV)/installed-run

$(TRL)/installed: $(VENV)/created constraints.txt
	$(PYTHON) -m venv $(TRL)
	$(INSTALL) --python $(TRL)/bin/python torch peft trl==1.16.0
	@touch $@
