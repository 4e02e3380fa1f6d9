.DEFAULT_GOAL := help

# The Python that makes the virtual environment: 3.11 or later.
PYTHON ?= python3

# The relative path of Python. The scripts in .venv/bin do not work if the path has spaces, so each
# program is started with `-m`.
PY := .venv/bin/python
INSTALLED := .venv/installed
CONFORMANCE_TOOLS := .venv-conformance/installed

.PHONY: help
help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

# The virtual environment, installed again only if one of these files has changed.
$(INSTALLED): requirements-dev.lock requirements-fast.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --require-hashes -r requirements-fast.lock 2>/dev/null || \
		echo 'Without a C compiler, gunicorn reads requests with its parser in Python, which is slower.'
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: run
run: $(INSTALLED) ## Serve the API, on an embedded PostgreSQL unless DATABASE_URL is set
	@$(PY) -m todo_api.commands.run

.PHONY: token
token: $(INSTALLED) ## Print a token for `make run`: make token USER_ID=5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10
	@$(PY) -m todo_api.commands.token "$(USER_ID)"

.PHONY: purge
purge: $(INSTALLED) ## Remove what has been in the trash for 30 days, and old idempotency keys
	$(PY) -m todo_api.commands.purge

.PHONY: restored
restored: $(INSTALLED) ## After a restore from a backup: make every client start a full sync
	$(PY) -m todo_api.commands.restored

# `worksteal`: an idle process takes tests from the others, so that all processes end together.
PYTEST := $(PY) -m pytest --numprocesses auto --dist worksteal

.PHONY: test
test: $(INSTALLED) ## Run the fast tests, on a real PostgreSQL: 3 minutes
	$(PYTEST) -m 'not slow' $(ARGS)

.PHONY: test-slow
test-slow: $(INSTALLED) ## Run the slow tests: servers, fault injection, migrations, browsers: 8 minutes
	$(PYTEST) -m slow $(ARGS)

# The tests that use the tables but do not test the schema, so they also run on partitioned tables.
DATA_LAYER := $(addprefix tests/, lists resources tasks users test_isolation.py \
	commands/test_purge.py db/test_retries.py db/test_round_trips.py web/test_validation.py)

.PHONY: test-full
test-full: $(INSTALLED) ## Run all tests with more repetitions, then through PgBouncer, then on partitioned tables
	$(PYTEST) --full $(ARGS)
	$(PYTEST) --pooler $(ARGS)
	$(PYTEST) --partitioned $(DATA_LAYER)

.PHONY: bench
bench: $(INSTALLED) ## Compare this API with other frameworks and with bare servers (needs wrk and Node)
	$(PY) benchmarks/compare.py $(ARGS)

.PHONY: bench-revision
bench-revision: $(INSTALLED) ## Compare with another Git revision: make bench-revision REV=main~5 (needs wrk)
	$(PY) benchmarks/compare_revisions.py $(REV) $(ARGS)

.PHONY: bench-growth
bench-growth: $(INSTALLED) ## Measure with more tasks, clients, database latency and requests (needs wrk)
	$(PY) benchmarks/growth.py $(ARGS)

.PHONY: bench-database
bench-database: $(INSTALLED) ## Measure PostgreSQL's CPU time and WAL: ARGS='--revision main~5' compares a Git revision
	$(PY) benchmarks/database.py $(ARGS)

.PHONY: bench-profile
bench-profile: $(INSTALLED) ## Measure the time of each operation by component (needs wrk)
	$(PY) benchmarks/profile_operations.py $(ARGS)

.PHONY: bench-startup
bench-startup: $(INSTALLED) ## Measure the time from a start to the first response
	$(PY) benchmarks/startup.py

.PHONY: bench-tokens
bench-tokens: $(INSTALLED) ## Measure the cost of token verification (needs wrk)
	$(PY) benchmarks/tokens.py

.PHONY: bench-spread
bench-spread: $(INSTALLED) ## Measure the distribution of connections to workers (needs wrk and nginx)
	$(PY) -m benchmarks.connection_spread $(ARGS)

.PHONY: fault-injection
fault-injection: $(INSTALLED) ## Kill, disconnect, stall and overload servers under load, and check the data
	$(PY) -m fault_injection $(ARGS)

# One scenario: make fault-injection-postgres
fault-injection-%: $(INSTALLED)
	$(PY) -m fault_injection $(ARGS) $*

# The previous names of these commands.
.PHONY: faults
faults: fault-injection
faults-%: $(INSTALLED)
	$(PY) -m fault_injection $(ARGS) $*

.PHONY: soak
soak: $(INSTALLED) ## Check that memory does not grow under a steady load of 10 minutes: DURATION=7200 for 2 h
	$(PY) -m fault_injection soak

$(CONFORMANCE_TOOLS): conformance/requirements.lock
	$(PYTHON) -m venv --clear .venv-conformance
	.venv-conformance/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r conformance/requirements.lock
	@touch $@

# No installation script of a package runs: these packages do not need one.
conformance/node_modules/installed: conformance/package-lock.json
	npm ci --prefix conformance --ignore-scripts --loglevel error
	@touch $@

.PHONY: conformance
conformance: $(INSTALLED) $(CONFORMANCE_TOOLS) conformance/node_modules/installed ## Check the API with Spectral, Redocly, httplint and schemathesis (needs Node and npm)
	$(PY) conformance/run.py

# The slow tests repeat the tests of low counts with higher ones, so the first run leaves these out.
# The second run appends its coverage, prints the report and checks the minimum. Each run is a make
# process of its own, so that pytest's summary is the last line of the output.
.PHONY: check
check: $(INSTALLED) ## Run everything that CI runs: 12 minutes
	@$(MAKE) --no-print-directory --jobs 2 lint types
	@$(MAKE) --no-print-directory test ARGS='--without-few --cov --cov-report= --cov-fail-under 0'
	@$(MAKE) --no-print-directory test-slow ARGS='--without-few --cov --cov-append --cov-report term'

.PHONY: lint
lint: $(INSTALLED) ## Check the style, the import layers and the uses of private parts of libraries
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(PY) -m tools.private_apis

.PHONY: format
format: $(INSTALLED) ## Format the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: types
types: $(INSTALLED) ## Check the types
	$(PY) -m mypy

.PHONY: migrate
migrate: $(INSTALLED) ## Migrate the database of DATABASE_URL to the newest schema
	$(PY) -m alembic upgrade head

.PHONY: migration
migration: $(INSTALLED) ## Generate a migration for changed fields and tables: make migration MESSAGE="Add due dates"
	@test -n "$(MESSAGE)" || { echo 'Describe the migration: make migration MESSAGE="Add due dates"'; exit 2; }
	$(PY) -m todo_api.commands.embedded sh -c '"$$0" -m alembic upgrade head && "$$0" -m alembic revision --autogenerate --message "$$1"' $(PY) "$(MESSAGE)"
	@$(PY) -m ruff format --quiet migrations

.PHONY: openapi
openapi: $(INSTALLED) ## Write the OpenAPI document to docs/openapi.json
	DATABASE_URL=postgresql:// AUTH_MODE=none $(PY) -m flask --app wsgi openapi write docs/openapi.json

.PHONY: lock
lock: $(INSTALLED) ## Update the locked versions of all dependencies
	$(PY) -m pip install --quiet --disable-pip-version-check 'uv>=0.13,<1'
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' setup.cfg --output-file requirements.lock
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' setup.cfg --extra fast --constraint requirements.lock \
		--output-file requirements-fast.lock
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' setup.cfg --extra dev --constraint requirements.lock \
		--output-file requirements-dev.lock
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' conformance/requirements.in --output-file conformance/requirements.lock
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' tests/web/generated_clients/requirements.in \
		--output-file tests/web/generated_clients/requirements.lock
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' benchmarks/peers/requirements.in --constraint requirements.lock \
		--output-file benchmarks/peers/requirements.lock

.PHONY: clean
clean: ## Remove generated files, but not the data in .dev
	rm -rf .venv-bench benchmarks/peers/fastify/node_modules
	rm -rf .venv-clients .venv-conformance .schemathesis conformance/node_modules tests/*/*/node_modules
	rm -rf .venv *.egg-info build .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
