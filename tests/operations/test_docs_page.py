"""The page /docs in a real browser, which can reach only this server."""

import shutil
import subprocess

import pytest

from tests.support.make_run import running

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed"),
]

# The browser sends no requests of its own, and resolves no host except this one.
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--virtual-time-budget=10000",
    "--dump-dom",
]


def test_page_shows_operations_in_light_and_dark_mode(checkout, tmp_path):
    with running(checkout()) as server:
        pages = {
            mode: subprocess.run(
                [
                    CHROMIUM,
                    *OPTIONS,
                    f"--blink-settings=preferredColorScheme={scheme}",
                    f"--user-data-dir={tmp_path / mode}",
                    f"{server.url}/docs",
                ],
                capture_output=True,
                text=True,
                timeout=90,
                check=True,
            ).stdout
            for scheme, mode in enumerate(["dark", "light"])
        }

    for mode, page in pages.items():
        for text in ("Create a task.", "Erase the user", "Return the user and expiry of the token"):
            assert text in page, mode
        assert "Authorize" in page, mode
        assert ("dark-mode" in page.partition("<head>")[0]) is (mode == "dark"), mode
