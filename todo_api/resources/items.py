"""Read and change one row of a resource. Each run of the statements takes one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from todo_api.db.errors import OutcomeUnknownError
from todo_api.resources.statements import FIND_RESPONSE
from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource
    from todo_api.resources.statements import ConditionalChange
    from todo_api.web.conditional import Precondition
    from todo_api.web.idempotency import IdempotentRequest

CREATED = 201

# The maximum number of write attempts of a request. A write attempt is one call of
# `Database.write`: a first run and its retries, which have the same write attempt id. If an attempt
# changed nothing because another request was faster, a new attempt with a new id begins. After the
# last attempt, the response is a 503.
MAX_ATTEMPTS = 5

# The index of `written_by_this_attempt` in a row of `find_outcome`.
WRITTEN_BY_THIS_ATTEMPT = 5


class Item(NamedTuple):
    """A row: its JSON, as PostgreSQL wrote it, its revision, and whether it is in the trash."""

    json: Json
    revision: int
    id: UUID
    is_deleted: bool


class ChangeResult(NamedTuple):
    """The row as it is now (None if there is no row), and whether the row is as requested.

    `followed` is the number of other rows that this change has changed, if the last of its
    `follow_ups` counts them.
    """

    item: Item | None
    is_as_requested: bool
    followed: int = 0


class StoredResponse(NamedTuple):
    """The response to the first request with an Idempotency-Key."""

    status: int
    headers: dict[str, str]
    body: Json
    is_replayed: bool


def find_item(database: Database, owner: UUID, resource: Resource, item_id: UUID) -> Item | None:
    """Return the owner's item, or None if it does not exist or is in the trash."""
    row = database.one(owner, resource.statements.find, id=item_id)
    return Item(*row) if row else None


def insert_item(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID | None,
    values: Mapping[str, Any],
) -> ChangeResult:
    """Insert an item with these values, one for each field, under a UUIDv7 unless an id is given.

    If an item with the given id exists, also in the trash, it stays unchanged; it is as requested
    if it is not in the trash and has these values. Raises OutcomeUnknownError if other requests
    remove an item with this id during every write attempt.
    """
    insertion = resource.statements.insert
    parameters = {"id": item_id or uuid7(), **new_values(resource, values)}
    # No row can have a new id before the first run, so the first run need not look for one. A retry
    # that finds a row with the new id finds the row of the first run, even if it has changed since.
    is_new_id = item_id is None
    first_run = insertion.statements[:1] if is_new_id else insertion.statements
    for _ in range(MAX_ATTEMPTS):
        inserted, *outcome = database.write(
            owner, first_run, parameters, retry=insertion.statements
        )
        if inserted:
            return ChangeResult(Item(*inserted[0]), is_as_requested=True)
        if outcome and outcome[0]:
            *columns, has_values, written_by_this_attempt, _ = outcome[0][0]
            is_as_requested = is_new_id or has_values or written_by_this_attempt
            return ChangeResult(Item(*columns), is_as_requested)
        # After the INSERT found an existing row, another request removed the row. Try again.
    raise OutcomeUnknownError


def insert_item_once(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID | None,
    values: Mapping[str, Any],
    request: IdempotentRequest,
) -> StoredResponse | ChangeResult | None:
    """Insert an item unless a request with this key has inserted one; return its response.

    Returns None if the key belongs to a request with another fingerprint, and a ChangeResult if an
    item with the same id exists and is not as requested. One statement writes the item and the
    response, so either both exist or none. If two requests have the same key, the second one waits
    for the first, fails with unique_violation, and finds the response in its retry. Raises
    OutcomeUnknownError as `insert_item` does.
    """
    location = f"{request.path}/{item_id or (item_id := uuid7())}"
    parameters = {
        "id": item_id,
        "key": request.key,
        "fingerprint": request.fingerprint,
        "status": CREATED,
        "location": location,
        **new_values(resource, values),
    }
    find_outcome = resource.statements.insert.find_outcome
    statements = [resource.statements.insert_once, FIND_RESPONSE, find_outcome]
    for _ in range(MAX_ATTEMPTS):
        stored, responses, existing = database.write(
            owner, statements, parameters, retry=statements
        )
        if responses:
            fingerprint, status, headers, body, revision = responses[0]
            if fingerprint != request.fingerprint:
                return None
            response_headers = orjson.loads(headers) | {"ETag": etag(revision)}
            # A retry may read the response that the first run of the same write attempt has
            # stored. The client has not received it yet, so it is not a replay.
            is_first = bool(stored) or any(row[WRITTEN_BY_THIS_ATTEMPT] for row in existing)
            return StoredResponse(status, response_headers, body, is_replayed=not is_first)
        if existing:
            return ChangeResult(Item(*existing[0][:4]), is_as_requested=False)
        # After the INSERT found an existing row, another request removed the row. Try again.
    raise OutcomeUnknownError


def update_item(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID,
    changes: Mapping[str, Any],
    precondition: Precondition,
    statements: ConditionalChange | None = None,
) -> ChangeResult:
    """Set the fields that `changes` names, if the precondition holds.

    `statements` replaces the statements for these fields.
    """
    if not changes:
        item = find_item(database, owner, resource, item_id)
        return ChangeResult(item, item is None or not precondition.none_match_fails(item.revision))

    def parameters(item: Item | None) -> dict[str, Any]:
        return {"id": item_id, **new_values(resource, changes, item)}

    if statements is None:
        statements = resource.statements.update(tuple(sorted(changes)))
    return change(database, owner, statements, precondition, parameters)


def delete_item(
    database: Database, owner: UUID, resource: Resource, item_id: UUID, precondition: Precondition
) -> ChangeResult:
    """Put the item into the trash, if the precondition holds."""
    delete = resource.statements.delete
    return change(database, owner, delete, precondition, lambda _: {"id": item_id})


def restore_item(
    database: Database, owner: UUID, resource: Resource, item_id: UUID, precondition: Precondition
) -> ChangeResult:
    """Take the item out of the trash, if the precondition holds."""
    restore = resource.statements.restore
    return change(
        database, owner, restore, precondition, lambda _: {"id": item_id}, even_deleted=True
    )


def change(
    database: Database,
    owner: UUID,
    statements: ConditionalChange,
    precondition: Precondition,
    parameters: Callable[[Item | None], Mapping[str, Any]],
    *,
    even_deleted: bool = False,
) -> ChangeResult:
    """Run the change and return the row. If the row did not change, return it as it is now.

    If the row already is as requested, the result is a success, even if If-Match fails (RFC 9110,
    section 13.1.1). The UPDATE itself checks the precondition, so no other request can write
    between check and change. `parameters` returns the parameters of the change. Its argument is
    None in the first write attempt, and then the row as the attempt before has found it. Raises
    OutcomeUnknownError if the first run may have changed the row and another request may have
    changed it since.
    """
    item: Item | None = None
    for _ in range(MAX_ATTEMPTS):
        values = {**parameters(item), **precondition.parameters()}
        results = database.write(owner, statements.statements, values, retry=statements.statements)
        changed, *follow_ups, outcome = results[len(statements.locks) :]
        followed = follow_ups[-1][0][0] if follow_ups and follow_ups[-1] else 0
        if changed:
            return ChangeResult(Item(*changed[0]), is_as_requested=True, followed=followed)
        if not outcome:
            return ChangeResult(None, is_as_requested=False)
        *columns, is_wanted, written_by_this_attempt, changed_since = outcome[0]
        item = Item(*columns)
        none_match_fails = not item.is_deleted and precondition.none_match_fails(item.revision)
        if written_by_this_attempt or (is_wanted and not none_match_fails):
            return ChangeResult(item, is_as_requested=True, followed=followed)
        if changed_since:
            raise OutcomeUnknownError
        if item.is_deleted and not even_deleted:
            return ChangeResult(None, is_as_requested=False)
        if not precondition.holds(item.revision):
            return ChangeResult(item, is_as_requested=False)
        # When the UPDATE ran, the row did not match its conditions. Either the parameters depend on
        # the row, or another request has changed it since. Try again.
    raise OutcomeUnknownError


def new_values(
    resource: Resource, values: Mapping[str, Any], item: Item | None = None
) -> dict[str, Any]:
    """Return the parameters for these values of fields, and for the columns computed from them.

    The other fields on which these columns depend have the values of `item`, or null.
    """
    parameters: dict[str, Any] = {}
    for name, value in values.items():
        parameters |= resource.by_name[name].type.parameters(name, value)
    for column in resource.computed:
        if not values.keys() & set(column.sources):
            continue
        sources = dict.fromkeys(column.sources)
        if not values.keys() >= set(column.sources):
            stored = stored_values(resource, column.sources, item) if item else sources
            parameters |= {f"stored_{name}": value for name, value in stored.items()}
            sources |= stored
        sources |= {name: values[name] for name in column.sources if name in values}
        has_null = None in sources.values()
        parameters[f"new_{column.name}"] = None if has_null else column.compute(*sources.values())
    return parameters


def stored_values(resource: Resource, names: Sequence[str], item: Item) -> dict[str, Any]:
    """Return the item's values of these fields, from its JSON."""
    members = orjson.loads(item.json)
    return {name: resource.stored_fields[name].deserialize(members[name]) for name in names}
