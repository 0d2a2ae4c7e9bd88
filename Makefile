# Two commands on a fresh machine: `make demo` and `make test`. Linux, Python 3.10-3.13, no GPU needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# What the native operators are compiled against: there before the package itself is built.
NATIVE := nvidia-dali-cuda120 nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl

.PHONY: demo test test-all check bench gpu fuzz clean

demo: $(INSTALLED)  ## the whole way on real images, a few minutes on 2 cores
	$(BIN)/deit-fast demo

test: $(INSTALLED)  ## the test suite without what is marked slow
	$(BIN)/python -m pytest -m "not slow"

test-all: test  ## the test suite, then what is marked slow
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)  ## lint, format, and types of the installed wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/wheel build/typecheck
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/python -m pip install -q --no-deps --target build/typecheck build/wheel/*.whl
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python -p deit_fast

bench: $(INSTALLED)  ## throughput of loader, step and training on this machine, held against the budget
	$(BIN)/deit-fast bench loader --against timm,torchvision
	$(BIN)/deit-fast bench step --against timm --runtime.batch_size_per_device 16 --mix.group_size 16
	$(BIN)/deit-fast bench train --distill.teacher regnety_016 --runtime.batch_size_per_device 16 --mix.group_size 16

gpu: $(INSTALLED)  ## the first day with a GPU: tests, images, tune, bench, profile -> runs/gpu/report.html; DATA=/imagenet
	$(BIN)/python -m deit_fast.benchmarks.first_day $(if $(DATA),--data $(DATA))

fuzz: $(INSTALLED)  ## native operators under AddressSanitizer and UBSan: 10,000 broken JPEGs; then leaks over 100,000 images
	$(BIN)/python -m deit_fast.dali_pipelines.native.fuzz --files 10000 --images 100000

# An editable install maps four folders into one package (setup.py); its own build runs in the same environment.
$(INSTALLED): setup.py constraints.txt $(wildcard kernels/cpu/*.cc kernels/cpu/*.h)
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else 'deit-fast needs Python 3.10-3.13, found ' + sys.version.split()[0] + '; set PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel $(NATIVE)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[cuda12,demo,report,dev]"
	touch $@

clean:  ## removes what was built, not .venv and not runs/
	rm -rf build dist *.egg-info
