"""Parse JSON (RFC 8259) in UTF-8; reject texts that some parsers read in another way."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class NotJsonError(ValueError):
    """The bytes are not strict JSON. The message has the reason, without a quotation."""


def loads(data: bytes) -> Any:
    """Return the value, in the types of `json.loads`.

    Raises NotJsonError, also for NaN and infinities, repeated names in an object, deep nesting and
    long integers.
    """
    try:
        return json.loads(
            data.decode(), parse_constant=reject_constant, object_pairs_hook=build_object
        )
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


def reject_constant(name: str) -> NoReturn:
    raise NotJsonError(f"{name} is not allowed")


def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NotJsonError("an object has the same name twice")
    return members
