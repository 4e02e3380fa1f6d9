"""Time zones of the package tzdata, so that each zone has the same rules on every host."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from marshmallow import ValidationError, validate

from todo_api.web.fields import StrictText

DEFAULT_TIME_ZONE = "UTC"
NAME_LENGTH = 64
NAME_PATTERN = "^[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*$"
INVALID_ZONE = "Must be the IANA name of a time zone, like Europe/Berlin."

# A placeholder in the database for hosts without a time zone.
NOT_A_ZONE = "Factory"


@cache
def zone_names() -> frozenset[str]:
    """Return the names of all time zones."""
    return frozenset((files("tzdata") / "zones").read_text().split()) - {NOT_A_ZONE}


@cache
def load_zone(name: str) -> ZoneInfo:
    """Return the time zone of the package tzdata. Raises ValueError for an unknown name."""
    if name not in zone_names():
        raise ValueError(name)
    with files("tzdata.zoneinfo").joinpath(*name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def instant(day: date, time_of_day: time, zone_name: str) -> datetime:
    """Return the moment of a wall-clock time, in UTC.

    A time that a clock change skips takes the offset before the change. Of two moments with the
    same time, the result is the first (PEP 495, fold=0).
    """
    return datetime.combine(day, time_of_day, load_zone(zone_name)).astimezone(UTC)


class TimeZone(StrictText):
    """The IANA name of a time zone, as JSON or as a query parameter."""

    def __init__(self, *, metadata: dict[str, Any], **options: Any) -> None:
        super().__init__(
            validate=validate.Length(1, NAME_LENGTH, error=INVALID_ZONE),
            metadata={"example": "Europe/Berlin", **metadata, "pattern": NAME_PATTERN},
            **options,
        )

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        name = super()._deserialize(value, *args, **kwargs)
        if name not in zone_names():
            raise ValidationError(INVALID_ZONE)
        return name


class Day(NamedTuple):
    """The calendar day at a moment in a time zone, for the filters that depend on today."""

    now: datetime
    time_zone: str

    @property
    def date(self) -> date:
        return self.now.astimezone(load_zone(self.time_zone)).date()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of statements with such filters."""
        return {
            "today": self.date,
            "day_start": instant(self.date, time(), self.time_zone),
            "day_end": instant(self.date + timedelta(days=1), time(), self.time_zone),
            "now": self.now,
            "local_now": self._local_now(),
        }

    def _local_now(self) -> datetime:
        """Return the latest time of this day that the clocks of the zone have shown.

        If clocks are set back at midnight, the day continues after they have shown its end.
        """
        latest = latest_wall_time(self.now, load_zone(self.time_zone))
        return min(latest, datetime.combine(self.date, time.max))


def latest_wall_time(now: datetime, zone: ZoneInfo) -> datetime:
    """Return the latest time that the clocks of the zone have shown, without an offset.

    If clocks were set back, and now repeat an hour, it is the end of this hour.
    """
    local = now.astimezone(zone)
    if not local.fold:
        return local.replace(tzinfo=None)
    minute = now.replace(second=0, microsecond=0)
    while (local := minute.astimezone(zone)).fold:
        minute += timedelta(minutes=1)
    return local.replace(tzinfo=None)
