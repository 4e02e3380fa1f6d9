"""The time zones of the package tzdata, whatever the host has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT
from todo_api.resources.time_zones import load_zone, zone_names

if TYPE_CHECKING:
    from pathlib import Path

# Prints a moment in each zone that is sent, for comparison between processes.
PRINT_MOMENTS = """
import sys
from datetime import date, time
from todo_api.resources.time_zones import instant
for name in sys.argv[1:]:
    print(name, instant(date(2025, 7, 1), time(12), name).isoformat())
"""
MOMENTS = {
    "Europe/Berlin": "2025-07-01T10:00:00+00:00",
    "America/New_York": "2025-07-01T16:00:00+00:00",
    "UTC": "2025-07-01T12:00:00+00:00",
}


def print_moments(**environ: str) -> dict[str, str]:
    """Return the moment that a new process prints for each zone."""
    result = subprocess.run(
        [sys.executable, "-c", PRINT_MOMENTS, *MOMENTS],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return dict(line.split() for line in result.stdout.splitlines())


def test_zones_are_known_on_a_host_without_zones(tmp_path: Path):
    moments = print_moments(PYTHONTZPATH=str(tmp_path))

    assert moments == MOMENTS


def test_zones_of_the_host_are_ignored(tmp_path: Path):
    """On this host, all zones have the rules of Tokyo."""
    tokyo = (files("tzdata") / "zoneinfo" / "Asia" / "Tokyo").read_bytes()
    for name in MOMENTS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tokyo)

    moments = print_moments(PYTHONTZPATH=str(tmp_path), TZ="Asia/Tokyo")

    assert moments == MOMENTS


def test_every_zone_can_be_loaded():
    zones = {name: load_zone(name) for name in zone_names()}

    assert {name: zone.key for name, zone in zones.items()} == {name: name for name in zones}
    assert len(zones) > 400


@pytest.mark.parametrize(
    "name",
    [
        *("Factory", "localtime", "posixrules", "Europe", "europe/berlin", "CET+1", ""),
        *("../etc/passwd", "Europe/../UTC", "/etc/localtime", "tzdata.zi", "__init__.py"),
    ],
)
def test_name_of_no_zone_is_refused(name):
    with pytest.raises(ValueError, match=f"^{re.escape(name)}$"):
        load_zone(name)
