"""The alarms of deploy/: about what /metrics has, and each with a section of the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from fault_injection.servers import ROOT, environment

FOLDER = ROOT / "deploy" / "prometheus"
(GROUP,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

# Of Prometheus itself, and of its blackbox and node exporters.
OF_OTHERS = {
    "up",
    "probe_success",
    "probe_ssl_earliest_cert_expiry",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
}
WORDS = {"sum", "by", "rate", "increase", "changes", "time", "histogram_quantile", "or"}

# A process of its own, for metrics are of a process. Each has a sample here, of every label.
EXPOSE = """
from todo_api.metrics import KeySetMetrics, Metrics
metrics = Metrics()
metrics.observe_request("/livez", "GET", 200, 0.001)
KeySetMetrics(metrics).report_fetch(1)
print(metrics.exposition().decode())
"""


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """The series that /metrics can have, each with the names of its labels."""
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
def test_an_alarm_is_about_what_there_is(rule, exposed):
    expression = rule["expr"]
    outside = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", expression)

    named = set(re.findall(r"\b[a-z]\w*", outside)) - WORDS

    assert named, expression
    assert named <= exposed.keys() | OF_OTHERS
    for name, selectors in re.findall(r"\b(todo_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selectors)) <= exposed[name]


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: rule["alert"])
def test_an_alarm_says_what_it_is_and_where_the_runbook_says_what_to_do(rule):
    page, _, section = rule["annotations"]["runbook"].partition("#")

    assert page == "docs/runbook.md"
    assert section in anchors(RUNBOOK)
    assert rule["alert"] in RUNBOOK
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"].endswith(".")


def test_every_link_within_the_runbook_leads_somewhere():
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors(RUNBOOK)


def anchors(text: str) -> set[str]:
    """The names that links to the page's sections have, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian: apt install prometheus)",
)
@pytest.mark.parametrize("check", [["rules", "alerts.yml"], ["config", "prometheus.yml"]])
def test_prometheus_takes_the_files(check):
    checked = subprocess.run(
        ["promtool", "check", *check],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert checked.returncode == 0, checked.stderr
