"""A clock for `create_app(..., now=clock)`, which a test sets."""

from __future__ import annotations

from datetime import UTC, datetime


class Clock:
    """Returns the moment to which the test has set it, in UTC."""

    def __init__(self, moment: str) -> None:
        self.set(moment)

    def set(self, moment: str | datetime) -> None:
        """Set the clock to a date-time with an offset, as text or as an object."""
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment)
        self.moment = moment.astimezone(UTC)

    def __call__(self) -> datetime:
        return self.moment
