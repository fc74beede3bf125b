# Two commands do all the set-up there is:
#
#   make generate PROMPT="a red apple"      draws; the first time it also creates .venv and installs
#   make test                               the whole suite; the first time it also installs what tests need
#
# and two more for who changes the code:   make check   make bench

PROMPT  ?= a red apple
ARGS    ?=
TESTS   ?= tests
WORKERS ?= 2
PYTHON  ?= python3
VENV    ?= .venv

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check
# torch goes first, alone and exact: the build of it that is there (CPU or CUDA) is then the one that everything else gets
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\)$$/\1/p' constraints.txt)
EMOJI := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
CLDR  := /usr/share/unicode/cldr/common/annotations/en.xml
ART   := /usr/share/openclipart/svg
WANTED := fonts-noto-color-emoji unicode-cldr-core openclipart-png openclipart-svg chromium

export PROMPT
export PYTHONUNBUFFERED = 1

.PHONY: help generate test check bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

generate: $(VENV)/.installed
	@echo "make: drawing \"$$PROMPT\""
	@$(BIN)/triptych generate $(ARGS) -- "$$PROMPT"

test: $(VENV)/.installed-test
	@if [ -f $(EMOJI) ] && [ -f $(CLDR) ] && [ -d $(ART) ] && { command -v chromium || command -v chromium-browser; } >/dev/null; then :; else \
	  echo "make: not all of these Debian packages are here; with them all tests run:"; \
	  echo "make:     sudo apt-get install $(WANTED)"; \
	  echo "make: without them the tests that need them are skipped, and named at the end"; fi
	@echo "make: running the tests ($(TESTS)) in $(WORKERS) processes, one thread each"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -rs --no-fold-skipped $(ARGS) $(TESTS)

check: $(VENV)/.installed-dev
	@echo "make: ruff"
	@$(BIN)/python -m ruff check .
	@echo "make: pyright"
	@$(BIN)/python -m pyright --pythonpath $(BIN)/python
	@echo "make: sizes, imports, documents"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_architecture.py tests/test_repository.py

bench: $(VENV)/.installed-test
	@echo "make: measuring; leave the machine alone meanwhile"
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV)

# --- the environment: a stamp for each thing installed, older than pyproject.toml or constraints.txt = install again ---

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: Triptych needs Python 3.11 or newer, and $(PYTHON) is `$(PYTHON) --version 2>&1 || true`."; \
	  echo "make: name a newer one:  make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@echo "make: creating the environment in $(VENV) with `$(PYTHON) --version`"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: this Python cannot create environments; on Debian and Ubuntu:  sudo apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "make: installing $(TORCH) (some hundred MB: this is the long part)"
	@$(PIP) install -c constraints.txt $(TORCH)
	@echo "make: installing Triptych and the rest of what it needs"
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@
	@echo "make: installed; this was needed only once"

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "make: installing what the tests need"
	@$(PIP) install -q -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@echo "make: installing what checking the code needs"
	@$(PIP) install -q -c constraints.txt -e '.[test,dev]'
	@touch $@
