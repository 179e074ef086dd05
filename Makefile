# make demo: search the built-in task and print the front.   make test: run the test suite.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= reports/demo

.PHONY: demo test check clean

demo: $(VENV)/.installed
	$(BIN)/autocompress search autocompress.tasks:easy_vqa --space search_spaces/multimodal.yaml --trials 20 --timeout 5m \
		--finalize-steps 80 --task-arg validation_images=100 --out $(OUT)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/ruff check . && $(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
