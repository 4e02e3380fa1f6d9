"""The rows of tasks, for the peers that use asyncpg without an ORM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
from members import DUE, TaskCreate, moment
from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

COLUMNS = (
    "id, user_id, title, description, completed, completed_at, priority, labels, due_date,"
    " due_time, time_zone, due_at, start_date, list_id, parent_id, position, metadata, created_at,"
    " updated_at, revision"
)
OWN = "user_id = $1 AND id = $2 AND deleted_at IS NULL"
FIND = f"SELECT {COLUMNS} FROM tasks WHERE {OWN}"
LIST = f"""
    SELECT {COLUMNS} FROM tasks WHERE user_id = $1 AND deleted_at IS NULL
    ORDER BY created_at DESC, id DESC LIMIT $2
"""
INSERT = f"""
    INSERT INTO tasks
        (user_id, id, title, description, completed, completed_at, priority, labels, due_date,
         due_time, time_zone, due_at, start_date, metadata)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    RETURNING {COLUMNS}
"""
DELETE = f"UPDATE tasks SET deleted_at = clock_timestamp() WHERE {OWN}"
FIND_DUE = f"SELECT {', '.join(DUE)} FROM tasks WHERE {OWN} FOR UPDATE"

# A statement runs on a pool or, in a transaction, on a connection.
Executor = asyncpg.Pool | asyncpg.Connection


async def leave_alone(_: asyncpg.Connection) -> None:
    """Replace the reset of asyncpg at each release: these connections have no state to reset."""


def create_pool(decode: Callable[[str], Any], **options: Any) -> Any:
    """Return a pool. `decode` converts the text of a JSON object, such as orjson.loads."""

    async def set_codec(connection: asyncpg.Connection) -> None:
        await connection.set_type_codec(
            "jsonb",
            encoder=lambda value: orjson.dumps(value).decode(),
            decoder=decode,
            schema="pg_catalog",
        )

    return asyncpg.create_pool(
        os.environ["DATABASE_URL"],
        min_size=10,
        max_size=10,
        init=set_codec,
        reset=leave_alone,
        **options,
    )


async def insert(database: Executor, owner: UUID, new: TaskCreate) -> asyncpg.Record:
    return await database.fetchrow(
        INSERT,
        owner,
        uuid7(),
        new.title,
        new.description,
        new.completed,
        new.completed_at,
        new.priority,
        new.labels,
        new.due_date,
        new.due_time,
        new.time_zone,
        moment(new.due_date, new.due_time, new.time_zone),
        new.start_date,
        new.metadata,
    )


async def update(
    database: Executor,
    owner: UUID,
    task_id: UUID,
    changes: Mapping[str, Any],
    revisions: Sequence[int] | None = None,
) -> asyncpg.Record | None:
    """Change the row and return it, or None if there is no row, or none of these revisions."""
    if not changes:
        return await database.fetchrow(FIND, owner, task_id)
    values = dict(changes)
    sent = changes.keys() & set(DUE)
    if sent:
        due: Mapping[str, Any] = changes
        if len(sent) < len(DUE):
            stored = await database.fetchrow(FIND_DUE, owner, task_id)
            if stored is None:
                return None
            due = dict(stored) | values
        values["due_at"] = moment(*(due[name] for name in DUE))
    assignments = ", ".join(
        f"metadata = jsonb_strip_nulls(metadata || ${number})"
        if name == "metadata"
        else f"{name} = ${number}"
        for number, name in enumerate(values, 3)
    )
    parameters = list(values.values())
    condition = ""
    if revisions is not None:
        parameters.append(revisions)
        condition = f" AND revision = ANY(${len(parameters) + 2})"
    return await database.fetchrow(
        f"UPDATE tasks SET {assignments} WHERE {OWN}{condition} RETURNING {COLUMNS}",
        owner,
        task_id,
        *parameters,
    )
