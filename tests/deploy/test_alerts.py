"""The alerts of deploy/: each uses existing metrics and has a section in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from faults.servers import ROOT, environment

FOLDER = ROOT / "deploy" / "prometheus"
(GROUP,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

# Metrics of Prometheus itself, and of its blackbox and node exporters.
OTHER_METRICS = {
    "up",
    "probe_success",
    "probe_ssl_earliest_cert_expiry",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
}
PROMQL_WORDS = {"sum", "by", "rate", "increase", "changes", "time", "histogram_quantile", "or"}

# Metrics belong to a process, so a new one prints them, with a sample of every label.
EXPOSE = """
from todo_api.metrics import KeySetMetrics, Metrics
metrics = Metrics()
metrics.observe_request("/livez", "GET", 200, 0.001)
KeySetMetrics(metrics).report_fetch(1)
print(metrics.exposition().decode())
"""


@pytest.fixture(scope="module")
def exposed_series() -> dict[str, set[str]]:
    """The series that /metrics can contain, each with its label names."""
    text = subprocess.run(
        [sys.executable, "-c", EXPOSE],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE)
    return {name: set(re.findall(r'(\w+)="', labels)) for name, labels in samples}


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: rule["alert"])
def test_alert_uses_existing_metrics_and_labels(rule, exposed_series):
    expression = rule["expr"]
    without_labels = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", expression)

    metrics = set(re.findall(r"\b[a-z]\w*", without_labels)) - PROMQL_WORDS

    assert metrics, expression
    assert metrics <= exposed_series.keys() | OTHER_METRICS
    for name, selectors in re.findall(r"\b(todo_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selectors)) <= exposed_series[name]


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: rule["alert"])
def test_alert_has_a_summary_and_a_section_in_the_runbook(rule):
    page, _, section = rule["annotations"]["runbook"].partition("#")

    assert page == "docs/runbook.md"
    assert section in anchors(RUNBOOK)
    assert rule["alert"] in RUNBOOK
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"].endswith(".")


def test_every_link_within_the_runbook_has_a_target():
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors(RUNBOOK)


def anchors(text: str) -> set[str]:
    """Return the anchors of the page's sections, as GitHub generates them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian: apt install prometheus)",
)
@pytest.mark.parametrize("check", [["rules", "alerts.yml"], ["config", "prometheus.yml"]])
def test_promtool_accepts_the_files(check):
    process = subprocess.run(
        ["promtool", "check", *check],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert process.returncode == 0, process.stderr
