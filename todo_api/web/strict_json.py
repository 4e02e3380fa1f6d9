"""Parse JSON (RFC 8259) in UTF-8, and refuse what two parsers could read in two ways."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class NotJsonError(ValueError):
    """The bytes are not such JSON; the message says why, without quoting them."""


def loads(data: bytes) -> Any:
    """The value, as `json.loads` has it.

    Raises NotJsonError; for a NaN, a name that an object has twice and deep nesting, too.
    """
    try:
        return json.loads(data.decode(), parse_constant=no_constant, object_pairs_hook=unique_names)
    except UnicodeDecodeError as error:
        raise NotJsonError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise NotJsonError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise NotJsonError("nested too deeply") from None
    except NotJsonError:
        raise
    except ValueError:  # Python's limit on the digits of an integer
        raise NotJsonError("a number with too many digits") from None


def no_constant(name: str) -> NoReturn:
    raise NotJsonError(f"{name} is no number")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NotJsonError("an object has a name twice")
    return members
