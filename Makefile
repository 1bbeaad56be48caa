# make book            execute the chapters that changed, build the site, say where it is
# make book CHAPTER=03 the same for one chapter
# make book OFFLINE=1  the same, and the site loads nothing from other hosts; needs npm once; make test takes it, too
# make test            unit tests, then the book, then the tests of the book
# make test-all        the same, with 50 kills in place of 5 at random points of each long job, and more random cases
# make coverage        unit tests, and the share of the library's lines that they run: 95 % at least
# make bench           time the library against plain transformers, and against its peers, which it installs in _build
# make eval            every method on answer tasks, for any model: make eval MODEL=ID TASKS="boolq sst2" DEVICE=cuda
# make pdf             the whole book as one PDF, where latexmk and xelatex are installed
# make versions        unit tests with the lowest versions that the package allows, and with the newest
# make lint | notebooks | lock | clean

PYTHON ?= python3
CHAPTER ?=
OFFLINE ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Directories are listed too: their time changes when a file is deleted.
LIBRARY := $(shell find austeer data -name __pycache__ -prune -o -print 2>/dev/null)

# Nothing of the user's own Python settings reaches the build.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PYTHONNOUSERSITE = 1

.PHONY: book test test-all pdf versions coverage bench eval lint notebooks lock clean install
.DELETE_ON_ERROR:

BUILD := $(BIN)/python book/build.py $(if $(OFFLINE),--offline)
SCRIPTS := $(if $(OFFLINE),_build/npm/.installed)

book: install $(SCRIPTS)
	@$(BUILD) --chapter="$(CHAPTER)"

# Every part runs, whichever failed before; the closing line of the last pytest is the last one printed.
test: install $(SCRIPTS)
	@status=0; \
	$(BIN)/pytest tests --ignore=tests/book || status=1; \
	$(BUILD) || status=1; \
	$(BIN)/pytest tests/book || status=1; \
	exit $$status

test-all: export AUSTEER_TEST_ALL = 1
test-all: test

pdf: install
	@command -v latexmk xelatex >/dev/null || { \
	echo "make pdf needs TeX: \`apt-get install texlive-xetex texlive-fonts-extra latexmk fonts-freefont-otf\`."; exit 1; }
	@$(BUILD) --chapter="$(CHAPTER)" --pdf

coverage: install
	@$(BIN)/coverage run -m pytest tests --ignore=tests/book
	@$(BIN)/coverage report --skip-covered --show-missing

# What a reader's `pip install` may find: the unit tests, run in environments of their own.
versions:
	@for kind in lowest newest; do \
	rm -rf _build/$$kind && $(PYTHON) -m venv _build/$$kind && \
	$(PYTHON) tests/lowest.py > _build/$$kind/lowest.txt && \
	_build/$$kind/bin/python -m pip install -q --disable-pip-version-check ".[test]" \
	$$([ $$kind = newest ] || echo --constraint _build/$$kind/lowest.txt) && \
	echo "The $$kind versions:" && _build/$$kind/bin/pytest tests --ignore=tests/book || exit 1; \
	done

bench: install
	@$(BIN)/python bench/unit_sweep.py
	@$(BIN)/python bench/localisation.py
	@$(BIN)/python bench/generation.py
	@$(BIN)/python bench/peers.py

eval: install
	@$(BIN)/python experiments/evaluation.py $(if $(MODEL),--model "$(MODEL)") $(if $(DEVICE),--device "$(DEVICE)") \
	$(if $(DTYPE),--dtype "$(DTYPE)") $(TASKS)

lint: .venv/.locked
	@$(BIN)/ruff check .

notebooks: .venv/.locked
	@$(BIN)/python book/notebooks.py

install: .venv/.locked .venv/.installed

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	echo "The book needs Python 3.11, 3.12 or 3.13: name one, as in \`make PYTHON=python3.11\`."; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.locked: requirements.lock | .venv/bin/pip
	@echo "Installing the locked packages into .venv (some minutes, once) ..."
	@$(PIP) install -qq -r requirements.lock
	@touch $@

# Built without isolation: hatchling comes from the lock, so that nothing unlocked is downloaded.
.venv/.installed: .venv/.locked pyproject.toml $(LIBRARY)
	@rm -rf _build/wheel
	@$(PIP) wheel -q --no-deps --no-build-isolation -w _build/wheel .
	@$(PIP) install -q --no-deps --force-reinstall _build/wheel/*.whl
	@touch $@

# No package needs to run a script of its own: what the pages load lies in the packages as it is.
_build/npm/.installed: book/package.json book/package-lock.json
	@command -v npm >/dev/null || { \
	echo "OFFLINE=1 takes the pages' scripts from npm packages: install npm (\`apt-get install npm\`)."; exit 1; }
	@mkdir -p _build/npm && cp book/package.json book/package-lock.json _build/npm
	@npm ci --prefix _build/npm --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# The lock is what a clean environment gets today. torch is named first, and by its plain version: where a CPU build
# is installed its local version would bind every other machine to that build.
TORCH := 2.13.0
lock:
	@rm -rf _build/lock && $(PYTHON) -m venv _build/lock
	@_build/lock/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	e = p["optional-dependencies"]; print(*p["dependencies"], *e["book"], *e["test"], sep="\n")' > _build/lock/wanted.txt
	@_build/lock/bin/pip install -qq torch==$(TORCH) -r _build/lock/wanted.txt
	@{ echo "# The exact versions that the tests run with, on Linux with Python 3.11. Written by \`make lock\`."; \
	_build/lock/bin/pip freeze --exclude-editable | sed -e 's/+cpu$$//'; } > _build/lock/requirements.lock
	@if grep -q " @ " _build/lock/requirements.lock; then echo "The lock names a local file."; exit 1; fi
	@mv _build/lock/requirements.lock requirements.lock && rm -rf _build/lock

clean:
	@rm -rf _build
