"""Run the named scenarios, or all of them: `python -m fault_injection [--short] [scenario ...]`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from importlib import import_module

from fault_injection import SCENARIOS, MissingProgramError

SKIPPED = 77  # automake's exit status for a skipped test


def main() -> int:
    """Return 1 if a scenario failed, SKIPPED if all were skipped, and otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m fault_injection", description=__doc__)
    parser.add_argument("--short", action="store_true", help="run each for a few seconds only")
    parser.add_argument(
        "scenarios", nargs="*", metavar="scenario", help=f"one of {', '.join(SCENARIOS)}"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.scenarios) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    # On SIGTERM, exit by an exception, so that the scenario stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = [run(name, short=arguments.short) for name in arguments.scenarios or SCENARIOS]
    if "failed" in results:
        return 1
    return 0 if "passed" in results else SKIPPED


def run(name: str, *, short: bool) -> str:
    """Run the scenario. Return its result: passed, failed or skipped."""
    print(name, flush=True)
    started = time.monotonic()
    result, reason = "passed", ""
    try:
        import_module(f"fault_injection.{name}").run(short=short)
    except MissingProgramError as error:
        result, reason = "skipped", f": {error}"
    except Exception:  # noqa: BLE001  the other scenarios still run
        traceback.print_exc(file=sys.stdout)
        result = "failed"
    print(f"  {result} after {time.monotonic() - started:.0f} s{reason}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
