# make demo        search the built-in task and print the front
# make check       lint and types
# make test-fast   the tests that take under two minutes: no whole searches, trainings or families
# make test        all tests but whole searches of many model families, and repetitions
#   SLOW=yes           those too
#   VERSIONS=oldest    with the lowest versions that pyproject.toml allows (PyPI's torch: 3 GB)
#   HIDE=avx512        on the kernels of processors without AVX-512 (HIDE=vnni: without VNNI);
#                      Linux on x86-64, needs cc
PYTHON ?= python3
VERSIONS ?= newest
VENV ?= $(if $(filter oldest,$(VERSIONS)),.venv-oldest,.venv)
BIN = $(VENV)/bin
OUT ?= reports/demo
CONSTRAINTS = $(if $(filter oldest,$(VERSIONS)),$(VENV)/oldest.txt,constraints.txt)
HIDDEN = $(if $(HIDE),LD_PRELOAD=$(abspath build/hide.so) HIDE=$(HIDE))

# Files in the order of tests/conftest.py; otherwise those with few tests, however long, come last.
BY_FILE = --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast check types style clean

demo: $(VENV)/.installed
	$(BIN)/autocompress search autocompress.tasks:easy_vqa --space search_spaces/multimodal.yaml --trials 20 --timeout 5m \
		--finalize-steps 80 --task-arg validation_images=100 --out $(OUT)

test: $(VENV)/.installed $(if $(HIDE),build/hide.so)
	$(HIDDEN) $(BIN)/python -m pytest -n 2 $(if $(SLOW),--dist load -m '',$(BY_FILE))

test-fast: $(VENV)/.installed $(if $(HIDE),build/hide.so)
	$(HIDDEN) $(BIN)/python -m pytest -n 2 $(BY_FILE) -m 'not slow and not extensive'

check: $(VENV)/.installed
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[dev,docs]'
	$(MAKE) --jobs 2 --output-sync types style

types:
	$(BIN)/mypy

style:
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build # --quiet would hide warnings from strict mode

$(VENV)/.installed: pyproject.toml constraints.txt tests/oldest.py
	$(PYTHON) -m venv $(VENV)
	$(if $(filter oldest,$(VERSIONS)),$(BIN)/python tests/oldest.py pyproject.toml > $(CONSTRAINTS))
	$(BIN)/pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[test]'
	$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true # on all cores; pip takes one
	touch $@

build/hide.so: tests/processors/hide.c
	mkdir -p build
	$(CC) -O2 -shared -fPIC -o $@ $< -ldl

clean:
	rm -rf .venv .venv-oldest build *.egg-info
