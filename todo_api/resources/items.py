"""Read and change one row of a resource, in one round trip per function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

from todo_api.db.errors import OutcomeUnknownError
from todo_api.resources.statements import FIND_RESPONSE
from todo_api.web.conditional import ETAG_PREFIX, Precondition, etag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from todo_api.db.connection import Json, Row
    from todo_api.db.database import Database
    from todo_api.db.statement import Statement
    from todo_api.resources.resource import Resource
    from todo_api.web.idempotency import IdempotentRequest

CREATED = 201


class Item(NamedTuple):
    """A row: its JSON, as PostgreSQL wrote it, its revision, and whether it is in the trash."""

    json: Json
    revision: int
    id: UUID
    is_deleted: bool


class ChangeResult(NamedTuple):
    """The row as it is now, or None if it does not exist, and whether the change was applied."""

    item: Item | None
    applied: bool


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
    database: Database, owner: UUID, resource: Resource, values: Mapping[str, Any]
) -> Item:
    """Insert an item with these values, one for each field; its id is a UUIDv7."""
    statements = resource.statements
    parameters = {"id": uuid7(), **new_values(values)}
    inserted, *existing = database.write(
        owner,
        [statements.insert],
        parameters,
        again=[statements.insert, statements.find_even_deleted],
    )
    # The id is new, so an existing row was inserted by the first attempt.
    return Item(*(inserted or existing[0])[0])


def insert_named_item(
    database: Database, owner: UUID, resource: Resource, item_id: UUID, values: Mapping[str, Any]
) -> ChangeResult:
    """Insert an item under this id; not applied if it exists already, even in the trash."""
    statements = [resource.statements.insert, resource.statements.find_attempt]
    parameters = {"id": item_id, **new_values(values)}
    _, existing = database.write(owner, statements, parameters, again=statements)
    return read_attempt(existing, even_deleted=True)


def insert_item_once(
    database: Database,
    owner: UUID,
    resource: Resource,
    values: Mapping[str, Any],
    request: IdempotentRequest,
) -> StoredResponse | None:
    """Insert an item unless a request with this key has; return the response to that request.

    None means that the key belongs to a request with another fingerprint. The item and the response
    are written by one statement, so there are both or none. The loser of a race for the key waits
    for the winner, gets a unique_violation, and finds the response when it is repeated.
    """
    item_id = uuid7()
    location = f"{request.path}/{item_id}"
    parameters = {
        "id": item_id,
        "key": request.key,
        "fingerprint": request.fingerprint,
        "status": CREATED,
        "location": location,
        "etag_prefix": ETAG_PREFIX,
        **new_values(values),
    }
    statements = [resource.statements.insert_once, FIND_RESPONSE]
    _, (row,) = database.write(owner, statements, parameters, again=statements)
    fingerprint, status, headers, body, old_id, old_revision = row
    if fingerprint != request.fingerprint:
        return None
    if status is None:
        fields = {"Location": f"{request.path}/{old_id}", "ETag": etag(old_revision)}
        return StoredResponse(CREATED, fields, body, is_replayed=True)
    fields = orjson.loads(headers)
    return StoredResponse(status, fields, body, is_replayed=fields["Location"] != location)


def update_item(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID,
    changes: Mapping[str, Any],
    precondition: Precondition | None = None,
) -> ChangeResult:
    """Set the fields that `changes` names, if the precondition holds."""
    if not changes:
        item = find_item(database, owner, resource, item_id)
        holds = item is not None and (precondition is None or precondition.holds(item.revision))
        return ChangeResult(item, holds)
    fields = tuple(sorted(changes))
    statement = resource.statements.update(fields, conditional=precondition is not None)
    return change(database, owner, resource, item_id, statement, precondition, new_values(changes))


def delete_item(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID,
    precondition: Precondition | None = None,
) -> ChangeResult:
    """Put the item into the trash, if the precondition holds."""
    statement = resource.statements.delete(conditional=precondition is not None)
    return change(database, owner, resource, item_id, statement, precondition)


def restore_item(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID,
    precondition: Precondition | None = None,
) -> ChangeResult:
    """Take the item out of the trash; not applied if it is not there."""
    statement = resource.statements.restore(conditional=precondition is not None)
    precondition = precondition or Precondition()
    return change(database, owner, resource, item_id, statement, precondition, even_deleted=True)


def change(
    database: Database,
    owner: UUID,
    resource: Resource,
    item_id: UUID,
    statement: Statement,
    precondition: Precondition | None,
    values: Mapping[str, Any] | None = None,
    *,
    even_deleted: bool = False,
) -> ChangeResult:
    """Run the change and, where it can fail to apply, read the item as it is then.

    The change itself checks the precondition, so no other request can write in between.
    """
    find_attempt = resource.statements.find_attempt
    parameters: dict[str, Any] = {"id": item_id, **(values or {})}
    statements = [statement]
    if precondition is not None:
        parameters |= precondition.parameters()
        statements.append(find_attempt)
    changed, *existing = database.write(
        owner, statements, parameters, again=[statement, find_attempt]
    )
    if changed:
        return ChangeResult(Item(*changed[0]), applied=True)
    if not existing:
        return ChangeResult(None, applied=False)
    return read_attempt(existing[0], even_deleted=even_deleted)


def read_attempt(rows: Sequence[Row], *, even_deleted: bool = False) -> ChangeResult:
    """Return the result of a change that applied to no row, from the rows of `find_attempt`.

    Raises OutcomeUnknownError where its first attempt may have applied, and been overwritten.
    """
    if not rows:
        return ChangeResult(None, applied=False)
    *columns, written_by_this_attempt, changed_since = rows[0]
    item = Item(*columns)
    if written_by_this_attempt:
        return ChangeResult(item, applied=True)
    if changed_since:
        raise OutcomeUnknownError
    return ChangeResult(item if even_deleted or not item.is_deleted else None, applied=False)


def new_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statements' parameters for these values of fields."""
    return {f"new_{name}": value for name, value in values.items()}
