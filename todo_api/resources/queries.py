"""Filters in the query of a page or count, and the day and time zone that they depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from todo_api.resources.pages import Count, Filters, Page
from todo_api.resources.time_zones import DEFAULT_TIME_ZONE, Day
from todo_api.services import current_services

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from todo_api.resources.pages import Position
    from todo_api.resources.resource import Resource

Result = TypeVar("Result", Page, Count)

# The number of users whose time zone a worker remembers.
REMEMBERED_ZONES = 10_000


def depends_on_day(resource: Resource, query: Mapping[str, Any]) -> bool:
    """Return whether a filter of the query depends on the day."""
    return any(resource.filters[name].is_by_day for name in query.keys() & resource.filters.keys())


def read_filters(
    resource: Resource, query: Mapping[str, Any], user_id: UUID, after: Position | None = None
) -> Filters:
    """Return the filters of the query.

    If a filter depends on the day, the result has a day: the day of the cursor, otherwise today in
    the time zone of the query, otherwise today in the owner's time zone that this worker remembers.
    """
    sent = {name: query[name] for name in query.keys() & resource.filters.keys()}
    values = resource.complete_filters(sent)
    if not depends_on_day(resource, query):
        return Filters(values)
    if after is not None and after.day is not None:
        return Filters(values, after.day)
    services = current_services()
    sent_zone = query.get("time_zone")
    zone = sent_zone or services.time_zones.get(user_id, DEFAULT_TIME_ZONE)
    return Filters(values, Day(services.now(), zone), is_owners_zone=sent_zone is None)


def run_in_owners_zone(
    filters: Filters, user_id: UUID, run: Callable[[Filters], Result]
) -> tuple[Filters, Result]:
    """Return the result of the query, and its filters with the right time zone.

    If the owner's time zone differs from the time zone that this worker remembers, the query runs
    again: that is a second round trip.
    """
    result = run(filters)
    while filters.day and filters.is_owners_zone and filters.day.time_zone != result.time_zone:
        remember_zone(user_id, result.time_zone)
        filters = filters._replace(day=filters.day._replace(time_zone=result.time_zone))
        result = run(filters)
    return filters, result


def remember_zone(user_id: UUID, time_zone: str) -> None:
    """Remember the time zone of a user for the next requests of this worker."""
    zones = current_services().time_zones
    if len(zones) >= REMEMBERED_ZONES:
        zones.clear()
    zones[user_id] = time_zone


def has_etag(resource: Resource, filters: Filters) -> bool:
    """Return whether the result changes only with the owner's revision or with the day."""
    return not any(
        resource.filters[name].by_moment & set(value)
        for name, value in filters.values.items()
        if resource.filters[name].by_moment
    )


def etag_inputs(filters: Filters) -> tuple[str, ...]:
    """Return what the ETag of the result depends on besides the revision and the query."""
    if filters.day is None:
        return ()
    return (filters.day.time_zone, filters.day.date.isoformat())
