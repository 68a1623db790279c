# Two commands on a fresh machine: `make demo` and `make test`. Each does all its set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench docs dashboards pictures preview test-servers clean

demo: $(VENV)/for-demo
	$(BIN)/mailsonde demo

test: $(VENV)/for-dev test-servers
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: $(VENV)/for-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python dashboards/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/mailsonde schema > /dev/null

bench: $(VENV)/for-dev test-servers
	$(BIN)/python -m tests.benchmarks

docs: $(VENV)/for-dev
	$(BIN)/python docs/generate.py

dashboards: $(VENV)/for-dev
	$(BIN)/python dashboards/generate.py

# The README's pictures of the live page.
pictures: $(VENV)/for-dev test-servers
	$(BIN)/python docs/screenshot.py

# The dashboards' panels drawn without Grafana, roughly: build/preview/index.html and a picture of each.
preview: $(VENV)/for-dev test-servers
	$(BIN)/python -m dashboards.preview --picture docs/overview.png

# The servers that the tests start: Postfix, Dovecot, BIND, Prometheus and others.
test-servers:
	sh tests/real_servers/install

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mailsonde needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { test "$$(id -u)" = 0 && apt-get update -q && apt-get install -y -q python3-venv; } || \
	  { echo "this Python cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for what users need and one for what developers need besides. Python compiles what is
# imported when it is imported; to compile all of it beforehand takes as long as the rest.
$(VENV)/for-%: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
