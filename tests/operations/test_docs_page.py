"""The API's page in a real browser: it shows the document with no network but this server."""

import shutil
import subprocess

import pytest

from tests.support.make_run import running

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not here"),
]

# Nothing of the browser's own goes out, and no host but this one resolves.
QUIET = [
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


@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_the_page_shows_every_operation_in_light_and_dark(checkout, tmp_path, scheme, dark):
    with running(checkout()) as server:
        page = subprocess.run(
            [
                CHROMIUM,
                *QUIET,
                f"--blink-settings=preferredColorScheme={scheme}",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"{server.url}/docs",
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout

    for summary in ("Create a task.", "Erase the user", "Tell which user the token is for"):
        assert summary in page
    assert "Authorize" in page
    assert ("dark-mode" in page.partition("<head>")[0]) is dark
