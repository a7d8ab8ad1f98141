# make demo: environment, install, compile a real model and show it.  make test: environment, install, the whole suite.
PYTHON ?= python3.11
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
# A process for each core; tests of one file stay together. Threads of torch's that wait leave their core to the others. Where a
# process dies, the run ends and names its test: pytest-xdist may wait forever after a restart.
TESTS  := OMP_WAIT_POLICY=passive $(abspath $(BIN))/python -m pytest -q -n $(shell nproc) --dist loadfile --max-worker-restart 0

.PHONY: demo test check test-sanitized bench format ext clean

demo: $(VENV)/installed
	$(BIN)/python -m benchmarks.demo

test: $(VENV)/installed
	$(TESTS) tests

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

# -- Environment and install -----------------------------------------------------------------------------------------
$(VENV)/environment:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools wheel
	$(BIN)/python -m pip install -q $(TORCH) numpy pytest pytest-xdist transformers==5.18.0 nvidia-cuda-nvrtc rich
	touch $@

$(VENV)/installed: $(VENV)/environment setup.py pyproject.toml $(shell find csrc -name '*.[ch]')
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

# -- Checks ------------------------------------------------------------------------------------------------------------
$(VENV)/tools: $(VENV)/environment
	$(BIN)/python -m pip install -q ruff==0.17.6 mypy==2.4.1 clang-format==23.1.5
	touch $@

check: $(VENV)/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.[ch]' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.[ch]' | xargs $(BIN)/clang-format -i

# The suite under AddressSanitizer and UndefinedBehaviorSanitizer; leaks are covered by the growth tests. SANITIZED=--spread=N: at
# most N sets of parameters of each test.
test-sanitized: $(VENV)/environment
	rm -rf build/sanitized && mkdir -p build/sanitized
	MAGPY_SANITIZE=1 $(BIN)/python setup.py -q build_ext -j2 --build-temp build/sanitized/tmp --build-lib build/sanitized/lib
	$(BIN)/python setup.py -q egg_info --egg-base build/sanitized/lib
	cp -r magpy/*.py build/sanitized/lib/magpy/ && cp -r tests benchmarks pyproject.toml build/sanitized/lib/
	cd build/sanitized/lib && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  PYTHONMALLOC=malloc $(TESTS) -m "not unsanitized" $(SANITIZED) tests

# -- Development: incremental build in place -----------------------------------------------------------------------------
CFLAGS_DEV := -std=c11 -D_GNU_SOURCE -O2 -g -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unused-parameter \
  -Wno-missing-field-initializers -Wno-cast-function-type -Icsrc $(CFLAGS_EXTRA)
PY_INC  := $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_paths()['include'])")
EXT     := magpy/_C$(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
SOURCES := $(shell find csrc -name '*.c')
OBJECTS := $(SOURCES:%.c=build/dev/%.o)

ext: $(EXT)
$(EXT): $(OBJECTS)
	$(CC) -shared $(CFLAGS_EXTRA) -o $@ $^ -ldl
build/dev/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_DEV) -I$(PY_INC) -MMD -MP -c $< -o $@
-include $(OBJECTS:.o=.d)

clean:
	rm -rf build $(VENV) magpy/*.so *.egg-info
