# Each target makes .venv and installs what it needs into it, once; nothing outside this folder changes.
# Works with GNU make 3.81 (macOS) and later.
#
#   PYTHON=python3.12          another interpreter to make .venv with
#   ARGS="-k audio -x"         passed on to the command that the target runs
#   PIP_FLAGS="..."            passed on to every pip install (a mirror, a proxy)
#   TORCH="torch ..."          another torch, with pip options of its own (an index for another CUDA version)

PYTHON ?= python3
# `=`, not `?=`: a variable of this name in somebody's shell must not slip in.
PIP_FLAGS =
ARGS =
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)
# Other packages ask for torch, and would bring in the newest one with its CUDA libraries, so torch comes first.
TORCH_PIN := torch==$(shell sed -n 's/^ *- torch==\([^ ]*\).*/\1/p' environment.yml)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lab cuda notebooks site lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: .venv/.package  ## train the embedded model with GRPO, and show it before and after
	.venv/bin/python -m aqa_lib demo $(ARGS)

test: .venv/.test  ## run the unit tests, the doctests and the tests of the whole repository
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile aqa_lib tests $(ARGS)

# Copies, so that running a notebook changes no file of the repository; one that is there already is left as it is.
lab: .venv/.test  ## open your copies of the notebooks, in workbook/, in JupyterLab
	@mkdir -p workbook/figures && cp notebooks/figures/* workbook/figures/ && cp notebooks/*.png workbook/
	@for file in notebooks/*.ipynb; do copy=workbook/$${file##*/}; test -e $$copy || cp $$file $$copy; done
	@echo "Your copies are in workbook/; delete one, and the next 'make lab' brings back the course's own."
	.venv/bin/jupyter lab $(ARGS) workbook/00_tour.ipynb --ServerApp.root_dir=.

cuda: .venv/.cuda  ## test masters and 4-bit weights without a GPU, with the libraries of the cuda extra
	PYTHONPATH=.venv/cuda .venv/bin/python -m pytest aqa_lib/tests/large/test_masters.py aqa_lib/tests/large/test_four_bit.py $(ARGS)

notebooks: .venv/.test  ## run all notebooks in order at the tiny scale, and keep their outputs
	.venv/bin/python -m aqa_lib.course.render $(ARGS)

site: .venv/.test  ## build static pages of the notebooks, with sound and the error browser, in site/
	.venv/bin/python -m aqa_lib.course.site $(ARGS)

lint: .venv/.lint  ## check style, format, types, and that imports run one way
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

clean:  ## remove .venv; results and data stay
	rm -rf .venv

.venv/.python:
	@command -v $(PYTHON) >/dev/null || { echo "aqa_lib needs Python 3.11 or newer, and there is no '$(PYTHON)' here: install one, then 'make PYTHON=/its/path ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "aqa_lib needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): install a newer one, then 'make PYTHON=python3.11 ...'." >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv || { echo "Python's venv module does not work here; on Debian and Ubuntu it comes with 'apt install python3-venv'." >&2; rm -rf .venv; exit 1; }
	@touch $@

# The pins of environment.yml, as pip's constraints: a fresh machine gets the versions that were tested.
.venv/.pins: environment.yml | .venv/.python
	@sed -n 's/^ *- \([A-Za-z0-9_.-]*==[^ ]*\).*/\1/p' environment.yml | grep -v '^torch==' > $@

# On Linux pip's own choice is the CUDA build, gigabytes that a machine without a GPU cannot use. uv knows
# where the CPU build is kept; if that place cannot be reached (a mirror, no network), pip's choice it is.
.venv/.torch: environment.yml | .venv/.python
ifeq ($(origin TORCH),command line)
	@echo "Installing $(TORCH): a few minutes, once"
	@$(PIP) $(TORCH)
else
	@if [ "$$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then \
	    echo "Installing $(TORCH_PIN), CPU build (no NVIDIA GPU found): a few minutes, once"; \
	    { $(PIP) uv && .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend=cpu $(TORCH_PIN) 2>/dev/null; } \
	    || { echo "  uv cannot reach the CPU builds; pip installs the build that it finds"; $(PIP) $(TORCH_PIN); }; \
	else \
	    echo "Installing $(TORCH_PIN): a few minutes, once"; \
	    $(PIP) $(TORCH_PIN); \
	fi
endif
	@touch $@

.venv/.package: pyproject.toml .venv/.pins .venv/.torch
	@echo "Installing aqa_lib and what it needs: a minute or two, once"
	@$(PIP) -c .venv/.pins -e .
	@touch $@

.venv/.test: pyproject.toml .venv/.pins .venv/.torch
	@echo "Installing aqa_lib with its test and notebook tools: a minute or two, once"
	@$(PIP) -c .venv/.pins -e '.[notebooks,test]'
	@touch $@

# Outside the environment, for these tests only: bitsandbytes adds a third to the start-up time of Python with
# transformers, and Triton takes a gigabyte.
.venv/.cuda: .venv/.test
	@echo "Installing what the cuda extra names, and Triton: 350 MB, once"
	@$(PIP) --no-deps --target .venv/cuda bitsandbytes==0.50.2 flashoptim==0.1.4 triton==3.9.0
	@touch $@

.venv/.lint: .venv/.pins
	@echo "Installing ruff, mypy and import-linter"
	@$(PIP) -c .venv/.pins ruff mypy import-linter
	@touch $@
