.DEFAULT_GOAL := help

# The Python that makes the virtual environment: 3.11 or later.
PYTHON ?= python3

# A relative path, and modules instead of scripts: both work in a checkout whose path has spaces.
PY := .venv/bin/python
INSTALLED := .venv/installed
JUDGES := .venv-judge/installed

.PHONY: help
help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

# Rebuilt only if one of these files has changed.
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
token: $(INSTALLED) ## Print a token for a user of `make run`: make token USER_ID=5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10
	@$(PY) -m todo_api.commands.token "$(USER_ID)"

.PHONY: purge
purge: $(INSTALLED) ## Remove tasks that have been in the trash for 30 days, and old idempotency keys
	$(PY) -m todo_api.commands.purge

.PHONY: restored
restored: $(INSTALLED) ## After a restore from a backup: make every client start a full sync
	$(PY) -m todo_api.commands.restored

# A process that has finished takes tests from another one (worksteal).
PYTEST := $(PY) -m pytest --numprocesses auto --dist worksteal

.PHONY: test
test: $(INSTALLED) ## Run all tests except the slow ones, on a real PostgreSQL (3 minutes)
	$(PYTEST) -m 'not slow' $(ARGS)

.PHONY: test-slow
test-slow: $(INSTALLED) ## Run the slow tests: real servers, faults, migrations, browsers (8 minutes)
	$(PYTEST) -m slow $(ARGS)

# The tests of statements and their results, which must also pass on partitioned tables.
DATA_LAYER := tests/resources tests/tasks tests/users tests/test_isolation.py $(addprefix tests/, \
	commands/test_purge.py db/test_retries.py db/test_round_trips.py web/test_validation.py)

.PHONY: test-full
test-full: $(INSTALLED) ## Run the tests with all repetitions, then through PgBouncer, then on partitions
	$(PYTEST) --full $(ARGS)
	$(PYTEST) --pooler $(ARGS)
	$(PYTEST) --divided $(DATA_LAYER)

.PHONY: bench
bench: $(INSTALLED) ## Compare with other frameworks and the limits of the machine (needs wrk and Node)
	$(PY) benchmarks/compare.py $(ARGS)

.PHONY: bench-revision
bench-revision: $(INSTALLED) ## Compare with another git revision: make bench-revision REV=main~5 (needs wrk)
	$(PY) benchmarks/revisions.py $(REV) $(ARGS)

.PHONY: bench-growth
bench-growth: $(INSTALLED) ## Measure with more tasks, more clients, a distant database, a longer time (needs wrk)
	$(PY) benchmarks/growth.py $(ARGS)

.PHONY: bench-profile
bench-profile: $(INSTALLED) ## Measure the parts of the time of each operation (needs wrk)
	$(PY) benchmarks/parts.py $(ARGS)

.PHONY: bench-startup
bench-startup: $(INSTALLED) ## Measure the time from a start to the first response
	$(PY) benchmarks/startup.py

.PHONY: bench-tokens
bench-tokens: $(INSTALLED) ## Measure the cost of verifying tokens (needs wrk)
	$(PY) benchmarks/tokens.py

.PHONY: bench-spread
bench-spread: $(INSTALLED) ## Measure the distribution of connections over the workers (needs wrk and nginx)
	$(PY) -m benchmarks.spread $(ARGS)

.PHONY: faults
faults: $(INSTALLED) ## Break real servers while clients use them, and check that no data are lost
	$(PY) -m faults $(ARGS)

# One part: make faults-postgres
faults-%: $(INSTALLED)
	$(PY) -m faults $(ARGS) $*

.PHONY: soak
soak: $(INSTALLED) ## Serve a constant load for 10 minutes, and check that memory does not grow (2 h: DURATION=7200)
	$(PY) -m faults soak

$(JUDGES): judge/requirements.lock
	$(PYTHON) -m venv --clear .venv-judge
	.venv-judge/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r judge/requirements.lock
	@touch $@

# Without install scripts: none of these packages needs one.
judge/node_modules/installed: judge/package-lock.json
	npm ci --prefix judge --ignore-scripts --loglevel error
	@touch $@

.PHONY: judge
judge: $(INSTALLED) $(JUDGES) judge/node_modules/installed ## Check the API with Spectral, Redocly, httplint and schemathesis (needs nodejs and npm)
	$(PY) judge/run.py

# Coverage is that of both runs together: the second run adds its own, reports the sum and checks it.
# Each run is a separate make, so that its output ends with pytest's last line.
.PHONY: check
check: lint types ## Run everything that CI runs (12 minutes)
	@$(MAKE) --no-print-directory test ARGS='--cov --cov-report= --cov-fail-under 0'
	@$(MAKE) --no-print-directory test-slow ARGS='--cov --cov-append --cov-report term'

.PHONY: lint
lint: $(INSTALLED) ## Check style, import rules, and uses of undocumented parts of libraries
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
migration: $(INSTALLED) ## Generate a migration from changed fields and tables: make migration MESSAGE="Add due dates"
	@test -n "$(MESSAGE)" || { echo 'Set MESSAGE to what the migration does: make migration MESSAGE="Add due dates"'; exit 2; }
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
		--custom-compile-command 'make lock' judge/requirements.in --output-file judge/requirements.lock
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' benchmarks/peers/requirements.in --constraint requirements.lock \
		--output-file benchmarks/peers/requirements.lock

.PHONY: clean
clean: ## Remove all generated files except the data in .dev
	rm -rf .venv-bench benchmarks/peers/fastify/node_modules
	rm -rf .venv-judge .schemathesis judge/node_modules tests/*/*/node_modules
	rm -rf .venv *.egg-info build .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
