"""The types of fields for dates, times and time zones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from marshmallow import fields, validate
from sqlalchemy import Column, Date, DateTime, Text, bindparam, case, literal_column
from sqlalchemy.dialects.postgresql import TIME

from todo_api.resources.time_zones import NAME_LENGTH, TimeZone
from todo_api.resources.types import Filter, PlainType, Rule, SortKey
from todo_api.web.calendar_fields import (
    FIRST_DATE,
    FULL_TIME_OF_DAY,
    INVALID_DATE,
    LAST_DATE,
    DateParameter,
    DateTimeParameter,
    PastDateTime,
    StrictDate,
    StrictTimeOfDay,
)

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(time: datetime) -> int:
    """Return the microseconds since 1970."""
    return (time - UNIX_EPOCH) // timedelta(microseconds=1)


# The microseconds of all datetimes that Python can represent.
MICROSECONDS = range(
    microseconds(datetime.min.replace(tzinfo=UTC)),
    microseconds(datetime.max.replace(tzinfo=UTC)) + 1,
)
# The sort key of null: the last of these datetimes.
LAST_TIMESTAMP: ColumnElement[datetime] = literal_column(
    "timestamptz '9999-12-31 23:59:59.999999Z'", DateTime(timezone=True)
)


def time_filters(
    column: Column[Any], ending: str, descriptions: tuple[str, str], parameter: Any
) -> dict[str, Filter]:
    """Return two filters for later and earlier values, such as created_after, created_before.

    `ending` is the end of the column's name that the filters' names leave out. `parameter` returns
    the marshmallow field for a description.
    """
    stem = str(column.name).removesuffix(ending)
    later, earlier = descriptions

    def filter_(suffix: str, operator: str, description: str) -> tuple[str, Filter]:
        bound = bindparam(stem + suffix, type_=column.type)
        condition = column.op(operator, is_comparison=True)(bound)
        return stem + suffix, Filter(parameter(description), condition)

    return dict((filter_("_after", ">", later), filter_("_before", "<", earlier)))


@dataclass(frozen=True)
class TimestampType(PlainType):
    """A point in time, with microseconds. Null is sorted after all times."""

    column_type = DateTime(timezone=True)

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return PastDateTime(**options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.DateTime(**options)

    def filters(self, column: Column[Any], example: Any) -> dict[str, Filter]:  # noqa: ARG002
        descriptions = (
            f"Only if `{column.name}` is after this time, not equal to it.",
            f"Only if `{column.name}` is before this time, not equal to it.",
        )
        return time_filters(column, "_at", descriptions, DateTimeParameter)

    def sort_key(self, column: Column[Any]) -> SortKey:
        # CASE, because COALESCE under row-level security prevents the use of an index.
        expression = (
            case((column.is_(None), LAST_TIMESTAMP), else_=column) if column.nullable else column
        )
        return SortKey(
            expression, self.column_type, self._to_cursor, self.to_parameter, (str(column.name),)
        )

    def _to_cursor(self, value: str | None) -> int:
        return MICROSECONDS[-1] if value is None else microseconds(datetime.fromisoformat(value))

    def to_parameter(self, value: Any) -> datetime:
        if type(value) is not int or value not in MICROSECONDS:
            raise ValueError(value)
        return UNIX_EPOCH + timedelta(microseconds=value)


@dataclass(frozen=True)
class DateType(PlainType):
    """A calendar date. No time zone ever shifts it."""

    column_type = Date()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return StrictDate(**options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.Date(**options)

    def rules(self, name: str) -> dict[str, Rule]:
        return {"range": Rule(f"{name} BETWEEN '{FIRST_DATE}' AND '{LAST_DATE}'", INVALID_DATE)}

    def filters(self, column: Column[Any], example: Any) -> dict[str, Filter]:  # noqa: ARG002
        def parameter(description: str) -> DateParameter:
            return DateParameter({"description": description})

        descriptions = (
            f"Only if `{column.name}` is after this date, not equal to it.",
            f"Only if `{column.name}` is before this date, not equal to it.",
        )
        return time_filters(column, "_date", descriptions, parameter)


@dataclass(frozen=True)
class TimeOfDayType(PlainType):
    """A wall-clock time, to the second, without a time zone."""

    column_type = TIME(precision=0)

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return StrictTimeOfDay(**options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        keywords = {"pattern": f"^{FULL_TIME_OF_DAY.pattern}$", "minLength": 8, "maxLength": 8}
        options["metadata"] = {**options["metadata"], **keywords}
        return fields.Time(**options)


@dataclass(frozen=True)
class TimeZoneType(PlainType):
    """The IANA name of a time zone."""

    column_type = Text()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return TimeZone(**options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.String(validate=validate.Length(1, NAME_LENGTH), **options)
