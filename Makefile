# `make demo` and `make test` do all the set-up; both make .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without a GPU, keep pip from choosing a PyTorch with gigabytes of CUDA libraries.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,--constraint constraints-cpu.txt)

.PHONY: demo test test-fast coverage format clean

demo: $(VENV)/installed
	$(BIN)/dae3d demo --out demo-out

PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# Without the files of slow tests.
test-fast: $(VENV)/installed
	$(PYTEST) -m 'not slow'

# All tests, with the lines that none of them runs; fails below the floor in pyproject.toml.
coverage: $(VENV)/installed
	$(PYTEST) --cov

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit("dae3d needs Python 3.11 or newer, this is %d.%d; name one with `make PYTHON=python3.12`" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,demo]' $(CONSTRAINTS)
	# nnU-Net's networks, for tests. Their requirement timm would install torchvision, which they do not need.
	$(BIN)/pip install --quiet --no-deps dynamic-network-architectures==0.4.4
	touch $@

# Deletes what these targets have made and nothing else: an environment or a folder of one's own stays.
clean:
	[ ! -e $(VENV)/installed ] || rm -rf $(VENV)
	[ ! -e demo-out/.dae3d-demo ] || rm -rf demo-out
	rm -rf .mypy_cache .ruff_cache .pytest_cache
