"""Run the named scenarios, or all of them: `python -m fault_injection [--short] [scenario ...]`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from importlib import import_module

from fault_injection import SCENARIOS, MissingProgramError

SKIPPED = 77  # the exit status of a test that was skipped, as automake has it


def main() -> int:
    """0 if every promise was held, 1 if one was not, SKIPPED if no part could be run."""
    parser = argparse.ArgumentParser(prog="python -m fault_injection", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few seconds each")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(SCENARIOS)}")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    # So that the servers of a part that is ended end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = [run(name, short=arguments.short) for name in arguments.parts or SCENARIOS]
    if "failed" in results:
        return 1
    return 0 if "held" in results else SKIPPED


def run(name: str, *, short: bool) -> str:
    """What became of the part: held, failed or skipped."""
    print(name, flush=True)
    begun = time.monotonic()
    result, told = "held", ""
    try:
        import_module(f"fault_injection.{name}").run(short=short)
    except MissingProgramError as error:
        result, told = "skipped", f": {error}"
    except Exception:  # noqa: BLE001  the other parts are run all the same
        traceback.print_exc(file=sys.stdout)
        result = "failed"
    print(f"  {result} after {time.monotonic() - begun:.0f} s{told}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
