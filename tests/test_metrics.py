"""/metrics: closed unless asked for, of few labels, and one count of all of gunicorn's workers."""

import pytest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def measured(make_app):
    return make_app(METRICS="true").test_client()


def test_metrics_are_closed_by_default(client):
    assert client.get("/metrics").status_code == 404


def test_metrics_are_in_the_format_of_prometheus(measured):
    answer = measured.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"todo_http_requests", "todo_database_retries"} <= names
