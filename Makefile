# Two commands on a fresh machine: `make demo` and `make test`. Each does all its set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench fuzz soak docs alerts dashboards pictures preview test-servers release clean

demo: $(VENV)/for-demo
	$(BIN)/mailsonde demo

# Tests wait for servers much of the time, so there may be more workers than cores: `make test WORKERS=4`.
# Each of the hundreds of processes that they start would compile all modules if Python kept none.
WORKERS := auto
test: $(VENV)/for-dev test-servers
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/for-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python alerts/generate.py --check
	$(BIN)/python dashboards/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/mailsonde schema > /dev/null

bench: $(VENV)/for-dev test-servers
	$(BIN)/python -m tests.benchmarks

# Looks for inputs that break a parser; `make fuzz SECONDS=600` looks longer.
SECONDS := 60
fuzz: $(VENV)/for-dev $(VENV)/for-fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# Kills agents at every point of a message's life. SEED is printed with each round; give it again to repeat one.
KILLS := 1000
soak: $(VENV)/for-dev
	$(BIN)/python -m tests.crash --kills $(KILLS) $(if $(SEED),--seed $(SEED))
	MAILSONDE_CRASH_LONG=1 $(BIN)/pytest tests/crash/test_troubles.py

docs: $(VENV)/for-dev
	$(BIN)/python docs/generate.py

alerts: $(VENV)/for-dev
	$(BIN)/python alerts/generate.py

dashboards: $(VENV)/for-dev
	$(BIN)/python dashboards/generate.py

# The README's pictures of the live page.
pictures: $(VENV)/for-dev test-servers
	$(BIN)/python docs/screenshot.py

# The dashboards' panels drawn without Grafana, roughly: build/preview/index.html and a picture of each.
preview: $(VENV)/for-dev test-servers
	$(BIN)/python -m dashboards.preview --picture docs/overview.png

# Wheel, sdist, SBOM and SHA256SUMS in dist/, tried out in a fresh environment. Publishes nothing.
release: check
	$(BIN)/python release.py

# The servers that the tests start: Postfix, Dovecot, BIND, Exim, Prometheus and others.
test-servers:
	sh tests/real_servers/install

# A virtual environment with pip. `python -m venv` would install the same pip from the same file, but take 5 s
# to compile it (and setuptools, before Python 3.12). A pip older than 24 takes twice as long to read an
# index's lists of releases. With the build tools installed, pip need not download them into a separate
# environment.
UNPACK_PIP := import ensurepip, pathlib, sysconfig, zipfile; \
  folders = (sysconfig.get_config_var("WHEEL_PKG_DIR"), pathlib.Path(ensurepip.__file__).parent / "_bundled"); \
  wheels = [w for f in folders if f for w in pathlib.Path(f).glob(f"pip-{ensurepip.version()}-*.whl")]; \
  zipfile.ZipFile(wheels[0]).extractall(sysconfig.get_path("purelib"))
BUILD_TOOLS := hatchling editables
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-warn-conflicts

$(VENV)/with-pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mailsonde needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { test "$$(id -u)" = 0 && apt-get update -q && apt-get install -y -q python3-venv; } || \
	  { echo "this Python cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(BIN)/python -c '$(UNPACK_PIP)' 2>/dev/null || $(BIN)/python -m ensurepip
	$(INSTALL) $(BUILD_TOOLS) 'pip>=24' || $(INSTALL) $(BUILD_TOOLS)
	@touch $@

# One stamp for what users need, and one for what developers also need. Python compiles modules when they are
# imported; compiling all of them in advance would take as long as everything else.
$(VENV)/for-%: pyproject.toml $(VENV)/with-pip
	$(INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
