"""Strict marshmallow fields for dates, times of day and date-times in requests."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from marshmallow import ValidationError, fields

if TYPE_CHECKING:
    from collections.abc import Mapping

# The parts of RFC 3339 (section 5.6). A date-time needs an offset.
DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
DATE_TIME = re.compile(
    rf"{DATE.pattern}[Tt][0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(?:\.[0-9]{{1,6}})?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
TIME_OF_DAY = re.compile("(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9])?")
# The format of the times in responses.
FULL_TIME_OF_DAY = re.compile("(?:[01][0-9]|2[0-3])(?::[0-5][0-9]){2}")

# Dates in requests. The day after the last one stands for "no date" in sort keys, and PostgreSQL
# and Python can add a time zone's offset to all of them.
FIRST_DATE, LAST_DATE = date(1970, 1, 1), date(9999, 12, 30)

INVALID_DATE = f"Must be a date from {FIRST_DATE} to {LAST_DATE}, like 2026-11-21."
INVALID_DATE_TIME = "Must be a date-time of RFC 3339, like 2026-11-21T09:30:00Z."
INVALID_TIME = "Must be a time of day, like 09:30 or 09:30:00, from 00:00 to 23:59:59."

# The client's clock may be ahead of the server's.
CLOCK_TOLERANCE = timedelta(minutes=5)


def parse_date(text: Any) -> date:
    """Return the date. Raises marshmallow's ValidationError."""
    if isinstance(text, str):
        if DATE.match(text) and "T" in text[10:11].upper():
            raise ValidationError("Must be a date without a time, like 2026-11-21.")
        try:
            if (
                DATE.fullmatch(text)
                and FIRST_DATE <= (day := date.fromisoformat(text)) <= LAST_DATE
            ):
                return day
        except ValueError:  # such as the 30th of February
            pass
    raise ValidationError(INVALID_DATE)


def parse_date_time(text: Any) -> datetime:
    """Return the date-time in UTC. Raises marshmallow's ValidationError."""
    try:
        if isinstance(text, str) and DATE_TIME.fullmatch(text):
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # such as the 30th of February, or before the year 1 in UTC
        pass
    raise ValidationError(INVALID_DATE_TIME)


class StrictDate(fields.Date):
    """A calendar date, `YYYY-MM-DD`. A date-time is refused, not shortened."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        return parse_date(value)


class StrictTimeOfDay(fields.Time):
    """A time of day without an offset, `HH:MM` or `HH:MM:SS`."""

    def __init__(self, *, metadata: Mapping[str, Any], **options: Any) -> None:
        keywords = {"pattern": f"^{TIME_OF_DAY.pattern}$", "minLength": 5, "maxLength": 8}
        super().__init__(metadata={**metadata, **keywords}, **options)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        if not isinstance(value, str) or not TIME_OF_DAY.fullmatch(value):
            raise ValidationError(INVALID_TIME)
        return time.fromisoformat(value)


class PastDateTime(fields.DateTime):
    """A date-time (RFC 3339) that is not in the future."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        moment = parse_date_time(value)
        if moment > datetime.now(UTC) + CLOCK_TOLERANCE:
            raise ValidationError("Must not be in the future.")
        return moment


class DateParameter(StrictDate):
    """A date, as text."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata={**metadata, "example": "2026-11-21"})


class DateTimeParameter(fields.DateTime):
    """A date-time (RFC 3339), as text."""

    def __init__(self, description: str) -> None:
        metadata = {
            "description": description,
            "pattern": f"^{DATE_TIME.pattern}$",
            "example": "2026-11-21T09:30:00Z",
        }
        super().__init__(metadata=metadata)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:  # noqa: ARG002
        # In a query, + means a space.
        if " " in value and DATE_TIME.fullmatch(value.replace(" ", "+")):
            raise ValidationError(
                "Must be a date-time of RFC 3339: write the + of the offset as %2B, like"
                " 2026-11-21T09:30:00%2B02:00."
            )
        return parse_date_time(value)
