"""The Flask integrations of OpenTelemetry and Sentry work if installed as in docs/tracing.md."""

from __future__ import annotations

import subprocess
import sys

import orjson
import pytest
import sentry_sdk
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sentry_sdk.integrations.flask import FlaskIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from faults.servers import ROOT, environment

TASK = "/api/<id:user_id>/tasks/<id:task_id>"


@pytest.fixture
def app_with_a_bug(make_app):
    app = make_app()

    @app.post("/bug/<int:number>")
    def bug(number):
        raise LookupError(f"an internal detail {number}")

    return app


@pytest.fixture
def spans(app_with_a_bug):
    """Return a function that returns the finished spans of OpenTelemetry."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    FlaskInstrumentor().instrument_app(app_with_a_bug, tracer_provider=provider)
    yield exporter.get_finished_spans
    FlaskInstrumentor().uninstrument_app(app_with_a_bug)
    provider.shutdown()


def test_request_is_one_span_named_after_its_route(app_with_a_bug, spans, task):
    response = app_with_a_bug.test_client().get(task.url)

    assert response.json == task
    (span,) = spans()
    assert span.name == f"GET {TASK}"
    assert span.kind is SpanKind.SERVER
    assert span.attributes["http.route"] == TASK
    assert span.attributes["http.status_code"] == 200
    assert span.status.status_code is StatusCode.UNSET


def test_span_of_a_request_with_a_bug_has_the_exception(app_with_a_bug, spans):
    response = app_with_a_bug.test_client().post("/bug/1")

    assert response.status_code == 500
    (span,) = spans()
    assert span.attributes["http.route"] == "/bug/<int:number>"
    assert span.status.status_code is StatusCode.ERROR
    assert [event.attributes["exception.type"] for event in span.events] == ["LookupError"]


def test_unauthorized_request_has_a_span_if_flask_is_instrumented_first(database_url):
    script = """
import json, os
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
FlaskInstrumentor().instrument(tracer_provider=provider)
from wsgi import app
client = app.test_client()
for path in ("/livez", "/api/session", "/nothing"):
    client.get(path)
spans = exporter.get_finished_spans()
print(json.dumps([[span.name, span.attributes["http.status_code"]] for span in spans]))
"""
    settings = {"DATABASE_URL": database_url, "JWT_SECRET": "x" * 32, "LOG_LEVEL": "warning"}

    result = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", script],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr.decode()
    assert result.stderr == b""
    assert orjson.loads(result.stdout) == [
        ["GET /livez", 200],
        ["GET /api/session", 401],
        ["GET /nothing", 401],
    ]


class MemoryTransport(Transport):
    """A transport that stores the items for Sentry in memory."""

    def __init__(self):
        super().__init__()
        self.items = []

    def capture_envelope(self, envelope):
        self.items += envelope.items

    def of_type(self, kind):
        return [item.payload.json for item in self.items if item.type == kind]


@pytest.fixture
def sentry():
    transport = MemoryTransport()
    sentry_sdk.init(
        dsn="http://key@sentry.invalid/1",
        transport=transport,
        traces_sample_rate=1.0,
        max_request_body_size="never",
        include_local_variables=False,
        # The default integrations would patch connections and threads of this process.
        default_integrations=False,
        integrations=[FlaskIntegration(), LoggingIntegration()],
    )
    yield transport
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def test_bug_is_one_event_with_the_name_of_its_view(app_with_a_bug, sentry, log_lines):
    response = app_with_a_bug.test_client().post("/bug/1", json={"title": "A secret title"})

    assert response.status_code == 500
    assert response.json["type"] == "/problems/internal-error"
    (event,) = sentry.of_type("event")
    assert event["transaction"] == "bug"
    assert event["level"] == "error"
    (exception,) = event["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("LookupError", "an internal detail 1")
    assert exception["mechanism"]["handled"] is False
    assert "secret" not in str(event)
    assert [line["event"] for line in log_lines() if line["level"] == "error"] == [
        "unhandled exception"
    ]


def test_failed_statement_is_an_event_without_the_row(
    app_with_a_bug, sentry, connection, task, log_lines
):
    connection.execute(
        "ALTER TABLE tasks ADD CONSTRAINT ck_tasks_test CHECK (title <> 'A secret title') NOT VALID"
    )
    try:
        response = app_with_a_bug.test_client().patch(task.url, json={"title": "A secret title"})
    finally:
        connection.execute("ALTER TABLE tasks DROP CONSTRAINT ck_tasks_test")

    assert response.status_code == 500
    (event,) = sentry.of_type("event")
    assert event["transaction"] == "tasks.patch_task"
    (exception,) = event["exception"]["values"]
    assert exception["type"] == "DatabaseBugError"
    assert "constraint=ck_tasks_test" in exception["value"]
    assert "update_item" in [frame["function"] for frame in exception["stacktrace"]["frames"]]
    assert "secret" not in str(event)
    assert [line["event"] for line in log_lines() if line["level"] == "error"] == [
        "unexpected database error"
    ]


def test_request_without_a_bug_is_a_transaction_and_no_event(app_with_a_bug, task, sentry):
    client = app_with_a_bug.test_client()

    changed = client.patch(f"{task.url}/complete", json={"completed": True})
    refused = client.post(task.url.rpartition("/")[0], json={"title": ""})

    assert changed.json["completed"] is True
    assert refused.status_code == 422
    assert sentry.of_type("event") == []
    assert [transaction["transaction"] for transaction in sentry.of_type("transaction")] == [
        "tasks.complete_task",
        "tasks.create_task",
    ]
