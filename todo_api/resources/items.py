"""Read and change one row of a resource, in one round trip per function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from todo_api.db.errors import OutcomeUnknownError
from todo_api.resources.statements import FIND_RESPONSE
from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource
    from todo_api.resources.statements import ConditionalChange
    from todo_api.web.conditional import Precondition
    from todo_api.web.idempotency import IdempotentRequest

CREATED = 201

# A write that found nothing to do is sent again if the row was changed or removed before its
# outcome was read; after so many times, the client has to.
MOST_ROUNDS = 5

# The column of `find_outcome` that tells whether this attempt made the row's latest change.
WRITTEN_BY_THIS_ATTEMPT = 5


class Item(NamedTuple):
    """A row: its JSON, as PostgreSQL wrote it, its revision, and whether it is in the trash."""

    json: Json
    revision: int
    id: UUID
    is_deleted: bool


class ChangeResult(NamedTuple):
    """The row as it is now, or None if it does not exist, and whether it is as requested."""

    item: Item | None
    is_as_requested: bool


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

    An item with the given id and these values is as requested. Any other one is left as it is, even
    in the trash. Raises OutcomeUnknownError if an item with this id disappears again and again.
    """
    insertion = resource.statements.insert
    parameters = {"id": item_id or uuid7(), **new_values(values)}
    # A new id is known only if the first attempt has inserted it, whatever was changed since then.
    is_new_id = item_id is None
    first = [insertion.change] if is_new_id else [*insertion]
    for _ in range(MOST_ROUNDS):
        inserted, *outcome = database.write(owner, first, parameters, again=[*insertion])
        if inserted:
            return ChangeResult(Item(*inserted[0]), is_as_requested=True)
        if outcome and outcome[0]:
            *columns, has_values, written_by_this_attempt, _ = outcome[0][0]
            is_own = is_new_id or has_values or written_by_this_attempt
            return ChangeResult(Item(*columns), is_as_requested=is_own)
        # The row was removed for good after the insert had been decided.
    raise OutcomeUnknownError


def insert_item_once(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID | None,
    values: Mapping[str, Any],
    request: IdempotentRequest,
) -> StoredResponse | ChangeResult | None:
    """Insert an item unless a request with this key has; return the response to that request.

    None means that the key belongs to a request with another fingerprint. A ChangeResult is of an
    item with the same id that is not as requested. The item and the response are written by one
    statement, so either both exist or none does. The loser of a race for the key waits for the
    winner, gets a unique_violation, and finds the response when it is repeated. Raises
    OutcomeUnknownError as `insert_item` does.
    """
    location = f"{request.path}/{item_id or (item_id := uuid7())}"
    parameters = {
        "id": item_id,
        "key": request.key,
        "fingerprint": request.fingerprint,
        "status": CREATED,
        "location": location,
        **new_values(values),
    }
    find_outcome = resource.statements.insert.find_outcome
    statements = [resource.statements.insert_once, FIND_RESPONSE, find_outcome]
    for _ in range(MOST_ROUNDS):
        stored, responses, existing = database.write(
            owner, statements, parameters, again=statements
        )
        if responses:
            fingerprint, status, headers, body, revision = responses[0]
            if fingerprint != request.fingerprint:
                return None
            fields = orjson.loads(headers) | {"ETag": etag(revision)}
            # A retry that finds the response of its own first attempt is no replay.
            is_own = bool(stored) or any(row[WRITTEN_BY_THIS_ATTEMPT] for row in existing)
            return StoredResponse(status, fields, body, is_replayed=not is_own)
        if existing:
            return ChangeResult(Item(*existing[0][:4]), is_as_requested=False)
        # The row was removed for good after the insert had been decided.
    raise OutcomeUnknownError


def update_item(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID,
    changes: Mapping[str, Any],
    precondition: Precondition,
) -> ChangeResult:
    """Set the fields that `changes` names, if the precondition holds."""
    if not changes:
        item = find_item(database, owner, resource, item_id)
        return ChangeResult(item, item is None or not precondition.excludes(item.revision))
    statements = resource.statements.update(tuple(sorted(changes)))
    parameters = {"id": item_id, **new_values(changes)}
    return change(database, owner, statements, precondition, parameters)


def delete_item(
    database: Database, owner: UUID, resource: Resource, item_id: UUID, precondition: Precondition
) -> ChangeResult:
    """Put the item into the trash, if the precondition holds."""
    return change(database, owner, resource.statements.delete, precondition, {"id": item_id})


def restore_item(
    database: Database, owner: UUID, resource: Resource, item_id: UUID, precondition: Precondition
) -> ChangeResult:
    """Take the item out of the trash, if the precondition holds."""
    restore = resource.statements.restore
    return change(database, owner, restore, precondition, {"id": item_id}, even_deleted=True)


def change(
    database: Database,
    owner: UUID,
    statements: ConditionalChange,
    precondition: Precondition,
    parameters: Mapping[str, Any],
    *,
    even_deleted: bool = False,
) -> ChangeResult:
    """Run the change; if it applied to no row, return the row as it is then.

    A row that already is as requested is a success, even if If-Match fails (RFC 9110, section
    13.1.1). The change itself checks the precondition, so no other request can write in
    between. Raises OutcomeUnknownError where the first attempt may have applied and been
    overwritten.
    """
    values = {**parameters, **precondition.parameters()}
    for _ in range(MOST_ROUNDS):
        changed, outcome = database.write(owner, statements, values, again=statements)
        if changed:
            return ChangeResult(Item(*changed[0]), is_as_requested=True)
        if not outcome:
            return ChangeResult(None, is_as_requested=False)
        *columns, is_wanted, written_by_this_attempt, changed_since = outcome[0]
        item = Item(*columns)
        is_excluded = not item.is_deleted and precondition.excludes(item.revision)
        if written_by_this_attempt or (is_wanted and not is_excluded):
            return ChangeResult(item, is_as_requested=True)
        if changed_since:
            raise OutcomeUnknownError
        if item.is_deleted and not even_deleted:
            return ChangeResult(None, is_as_requested=False)
        if not precondition.holds(item.revision):
            return ChangeResult(item, is_as_requested=False)
        # The row was as requested, or in the other state, until the change had been decided.
    raise OutcomeUnknownError


def new_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statements' parameters for these values of fields."""
    return {f"new_{name}": value for name, value in values.items()}
