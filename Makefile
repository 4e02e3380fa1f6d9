.DEFAULT_GOAL := help

# The Python that makes the virtual environment: 3.11 or later.
PYTHON ?= python3

# A relative path, and never the scripts beside it: neither minds a checkout whose path has spaces.
PY := .venv/bin/python
INSTALLED := .venv/installed
JUDGES := .venv-judge/installed

.PHONY: help
help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

# Made anew only when what it is made of has changed.
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
purge: $(INSTALLED) ## Remove for good what has been in the trash for 30 days
	$(PY) -m todo_api.commands.purge

.PHONY: restored
restored: $(INSTALLED) ## After a restore from a backup: make every client start a full sync
	$(PY) -m todo_api.commands.restored

# A process without a test left takes some from another, so that no long one runs alone at the end.
PYTEST := $(PY) -m pytest --numprocesses auto --dist worksteal

.PHONY: test
test: $(INSTALLED) ## Run all tests but the slow ones, against a real PostgreSQL: in 3 minutes
	$(PYTEST) -m 'not slow' $(ARGS)

.PHONY: test-slow
test-slow: $(INSTALLED) ## Run the slow tests: real servers, faults, migrations, browsers
	$(PYTEST) -m slow $(ARGS)

# What is asked of the tables, and not what they are.
DATA_LAYER := tests/resources tests/tasks tests/users tests/test_isolation.py $(addprefix tests/, \
	commands/test_purge.py db/test_retries.py db/test_round_trips.py web/test_validation.py)

.PHONY: test-full
test-full: $(INSTALLED) ## Run the tests with every count in full, then through PgBouncer, then on partitions
	$(PYTEST) --full $(ARGS)
	$(PYTEST) --pooler $(ARGS)
	$(PYTEST) --divided $(DATA_LAYER)

.PHONY: bench
bench: $(INSTALLED) ## Compare with peers and with the limits, in turns (needs wrk and Node)
	$(PY) benchmarks/compare.py $(ARGS)

.PHONY: bench-revision
bench-revision: $(INSTALLED) ## Compare with another revision, in turns: make bench-revision REV=main~5 (needs wrk)
	$(PY) benchmarks/revisions.py $(REV) $(ARGS)

.PHONY: bench-growth
bench-growth: $(INSTALLED) ## Measure with more tasks, more clients, more distance, more time (needs wrk)
	$(PY) benchmarks/growth.py $(ARGS)

.PHONY: bench-profile
bench-profile: $(INSTALLED) ## Measure where the time of each operation goes (needs wrk)
	$(PY) benchmarks/parts.py $(ARGS)

.PHONY: bench-startup
bench-startup: $(INSTALLED) ## Measure the time from a start to the first answer
	$(PY) benchmarks/startup.py

.PHONY: bench-tokens
bench-tokens: $(INSTALLED) ## Measure what verifying tokens costs (needs wrk)
	$(PY) benchmarks/tokens.py

.PHONY: bench-spread
bench-spread: $(INSTALLED) ## Measure how connections spread over the workers (needs wrk and nginx)
	$(PY) -m benchmarks.spread $(ARGS)

.PHONY: faults
faults: $(INSTALLED) ## Kill, cut, hold and flood real servers, and see that every promise is kept
	$(PY) -m faults $(ARGS)

# One part: make faults-postgres
faults-%: $(INSTALLED)
	$(PY) -m faults $(ARGS) $*

.PHONY: soak
soak: $(INSTALLED) ## Serve a steady load for 10 minutes, and see that nothing grows: DURATION=7200 for 2 h
	$(PY) -m faults soak

$(JUDGES): judge/requirements.lock
	$(PYTHON) -m venv --clear .venv-judge
	.venv-judge/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r judge/requirements.lock
	@touch $@

# No script of a package runs: none of these needs one.
judge/node_modules/installed: judge/package-lock.json
	npm ci --prefix judge --ignore-scripts --loglevel error
	@touch $@

.PHONY: judge
judge: $(INSTALLED) $(JUDGES) judge/node_modules/installed ## Let Spectral, Redocly, httplint and schemathesis judge the API (needs nodejs and npm)
	$(PY) judge/run.py

# Coverage is that of both runs together: the second one adds its own, reports and judges. Each is a
# make of its own, which says nothing after pytest's last line.
.PHONY: check
check: lint types ## Run all that CI runs: in 12 minutes
	@$(MAKE) --no-print-directory test ARGS='--cov --cov-report= --cov-fail-under 0'
	@$(MAKE) --no-print-directory test-slow ARGS='--cov --cov-append --cov-report term'

.PHONY: lint
lint: $(INSTALLED) ## Look for faults in style, in the direction of imports, and in uses of libraries
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
migrate: $(INSTALLED) ## Bring the database of DATABASE_URL to the newest schema
	$(PY) -m alembic upgrade head

.PHONY: migration
migration: $(INSTALLED) ## Write a migration from what changed in the fields and tables: make migration MESSAGE="Add due dates"
	@test -n "$(MESSAGE)" || { echo 'Say what it does: make migration MESSAGE="Add due dates"'; exit 2; }
	$(PY) -m todo_api.commands.embedded sh -c '"$$0" -m alembic upgrade head && "$$0" -m alembic revision --autogenerate --message "$$1"' $(PY) "$(MESSAGE)"
	@$(PY) -m ruff format --quiet migrations

.PHONY: openapi
openapi: $(INSTALLED) ## Write the contract to docs/openapi.json
	DATABASE_URL=postgresql:// AUTH_MODE=none $(PY) -m flask --app wsgi openapi write docs/openapi.json

.PHONY: lock
lock: $(INSTALLED) ## Lock the versions of all dependencies anew
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
		--custom-compile-command 'make lock' tests/web/generated_clients/requirements.in \
		--output-file tests/web/generated_clients/requirements.lock
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' benchmarks/peers/requirements.in --constraint requirements.lock \
		--output-file benchmarks/peers/requirements.lock

.PHONY: clean
clean: ## Remove what make made, but not the data in .dev
	rm -rf .venv-bench benchmarks/peers/fastify/node_modules
	rm -rf .venv-clients .venv-judge .schemathesis judge/node_modules tests/*/*/node_modules
	rm -rf .venv *.egg-info build .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
