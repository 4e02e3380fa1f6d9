"""FastAPI with an asyncpg pool: one prepared statement for each request, and orjson."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict, StrictBool, StringConstraints
from tokens import SECRET, user_of
from uuid_utils.compat import uuid7

Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
Description = Annotated[str, StringConstraints(max_length=10_000)]

JSON = "application/json"
COLUMNS = "id, user_id, title, description, completed, created_at, updated_at, revision"
FIND = f"SELECT {COLUMNS} FROM tasks WHERE user_id = $1 AND id = $2 AND deleted_at IS NULL"
LIST = f"""
    SELECT {COLUMNS} FROM tasks WHERE user_id = $1 AND deleted_at IS NULL
    ORDER BY created_at DESC, id DESC LIMIT $2
"""
INSERT = f"""
    INSERT INTO tasks (user_id, id, title, description, completed) VALUES ($1, $2, $3, $4, $5)
    RETURNING {COLUMNS}
"""
DELETE = """
    UPDATE tasks SET deleted_at = clock_timestamp()
    WHERE user_id = $1 AND id = $2 AND deleted_at IS NULL RETURNING id
"""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TaskCreate(Body):
    title: Title
    description: Description | None = None
    completed: StrictBool = False


class TaskUpdate(Body):
    title: Title = ""
    description: Description | None = None
    completed: StrictBool = False


class Completion(Body):
    completed: StrictBool = True


async def leave_alone(_: asyncpg.Connection) -> None:
    """Replace the reset of asyncpg at each release: these connections have no state to reset."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=10, max_size=10, reset=leave_alone
    ) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


async def get_owner(user_id: UUID, authorization: Annotated[str | None, Header()] = None) -> UUID:
    if SECRET:
        user = user_of(authorization)
        if user is None:
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
        if user != str(user_id):
            raise HTTPException(404)
    return user_id


Owner = Annotated[UUID, Depends(get_owner)]


def answer(row: asyncpg.Record | None, status: int = 200) -> Response:
    if row is None:
        raise HTTPException(404)
    return Response(to_json(dict(row)), status, media_type=JSON)


def to_json(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_UTC_Z)  # asyncpg has its own UUID


@app.get("/api/{user_id}/tasks")
async def list_tasks(owner: Owner, limit: Annotated[int, Query(ge=1, le=200)] = 100) -> Response:
    rows = await app.state.pool.fetch(LIST, owner, limit)
    return Response(to_json([dict(row) for row in rows]), media_type=JSON)


@app.post("/api/{user_id}/tasks")
async def create_task(new: TaskCreate, owner: Owner) -> Response:
    task_id = uuid7()
    row = await app.state.pool.fetchrow(
        INSERT, owner, task_id, new.title, new.description, new.completed
    )
    response = answer(row, 201)
    response.headers["Location"] = f"/api/{owner}/tasks/{task_id}"
    return response


@app.get("/api/{user_id}/tasks/{task_id}")
async def get_task(task_id: UUID, owner: Owner) -> Response:
    return answer(await app.state.pool.fetchrow(FIND, owner, task_id))


async def update(owner: UUID, task_id: UUID, changes: dict[str, Any]) -> Response:
    if not changes:
        return answer(await app.state.pool.fetchrow(FIND, owner, task_id))
    assigned = ", ".join(f"{name} = ${at}" for at, name in enumerate(changes, 3))
    row = await app.state.pool.fetchrow(
        f"UPDATE tasks SET {assigned} WHERE user_id = $1 AND id = $2 AND deleted_at IS NULL"
        f" RETURNING {COLUMNS}",
        owner,
        task_id,
        *changes.values(),
    )
    return answer(row)


@app.patch("/api/{user_id}/tasks/{task_id}")
async def patch_task(task_id: UUID, changes: TaskUpdate, owner: Owner) -> Response:
    return await update(owner, task_id, changes.model_dump(exclude_unset=True))


@app.patch("/api/{user_id}/tasks/{task_id}/complete")
async def complete_task(
    task_id: UUID, owner: Owner, completion: Completion | None = None
) -> Response:
    done = completion is None or completion.completed
    return await update(owner, task_id, {"completed": done})


@app.delete("/api/{user_id}/tasks/{task_id}")
async def delete_task(task_id: UUID, owner: Owner) -> Response:
    if await app.state.pool.fetchval(DELETE, owner, task_id) is None:
        raise HTTPException(404)
    return Response(status_code=204)
