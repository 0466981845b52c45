# make demo   install into .venv and run the demo
# make test   install into .venv and run everything that CI runs
PYTHON ?= python3
VENV := .venv

.PHONY: install demo test
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[cpu,dev]"
	touch $@

demo: install
	$(VENV)/bin/forvalue demo

test: install
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tools/check
