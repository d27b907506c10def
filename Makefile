# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT ?= build/demo

.PHONY: demo test lint quick bench clean

demo: $(VENV)/.calibrate  ## calibrate the bundled model, measure it to 64 times its training length, print what got better
	$(BIN)/python benchmarks/demo.py --out $(OUT)

test: $(VENV)/.dev lint  ## lint, type check, all tests; the ten slowest are named at the end
	$(BIN)/pytest --durations=10

quick: $(VENV)/.dev  ## the tests that start no process, run no command and need no interpreter: under a minute
	$(BIN)/pytest -m quick --durations=10

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	MYPYPATH=$(VENV)/src $(BIN)/mypy -p longscan.kernels -p longscan.runtime -p longscan.engines -p longscan.calibrate

bench: $(VENV)/.dev  ## kernels and runtime beside transformers' torch path and llama-bench, if it is on PATH (minutes)
	$(BIN)/python benchmarks/kernels_cpu.py
	$(BIN)/python benchmarks/runtime_cpu.py

$(VENV)/.calibrate: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[calibrate]"
	mkdir -p $(VENV)/src && ln -sfn $(CURDIR) $(VENV)/src/longscan  # the packages under their names, for the type checker
	touch $@

$(VENV)/.dev: $(VENV)/.calibrate
	$(PIP) --editable ".[dev]"
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(PIP) --no-build-isolation --no-deps mamba-ssm  # its modules alone
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
