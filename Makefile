# make demo   policy search with its roofline plot and a simulated pass (sets up what it needs)
# make test   lint, types, tests and notebooks (sets up what it needs)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# bytecode is written when a module is first imported, and not of all that is installed
INSTALL := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types unit notebooks clean

demo: $(VENV)/.core
	mkdir -p out
	$(BIN)/hrm search --profile t4.yaml --refine 4 --output out/policy.yaml
	$(BIN)/hrm simulate --profile t4.yaml --policy out/policy.yaml --plot out/gantt.png
	$(BIN)/hrm roofline --profile t4.yaml --policy out/policy.yaml --output out/roofline.png
	$(BIN)/hrm roofline --profile l4.yaml --output out/roofline_l4.png
	@echo "Figures: out/roofline.png, out/roofline_l4.png, out/gantt.png; policy: out/policy.yaml"

test: $(VENV)/.test
	$(MAKE) -j 2 lint types
	$(BIN)/pytest -n 2 --dist worksteal --durations 12 --nbmake --nbmake-timeout=90 notebooks tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

types: $(VENV)/.test
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/pytest -n 2 --dist worksteal --durations 12

notebooks: $(VENV)/.test
	$(BIN)/pytest --nbmake --nbmake-timeout=90 notebooks

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/pip pyproject.toml constraints.txt
	$(INSTALL) -c constraints.txt -e .
	touch $@

# torch by its exact pin first: an open range would let pip take a build with gigabytes of GPU libraries
$(VENV)/.test: $(VENV)/bin/pip pyproject.toml constraints.txt
	$(INSTALL) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(INSTALL) -c constraints.txt -e ".[test]"
	touch $(VENV)/.core $@

clean:
	rm -rf $(VENV) out build *.egg-info
