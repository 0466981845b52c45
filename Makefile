# make demo   install into .venv what the demo needs, and run it
# make test   install into .venv what the checks need too, and run everything that CI runs
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: install demo test
install: $(VENV)/checks

$(VENV)/package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(PIP) --editable ".[cpu]"
	touch $@

$(VENV)/checks: $(VENV)/package
	$(PIP) --editable ".[cpu,dev]"
	touch $@

demo: $(VENV)/package
	$(VENV)/bin/forvalue demo

test: $(VENV)/checks
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tools/check
