"""FastAPI with an asyncpg pool: one prepared statement for each request, and orjson."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
import rows
from fastapi import FastAPI, HTTPException, Query, Request, Response
from members import Completion, TaskCreate, TaskUpdate
from owner import Owner

JSON = "application/json"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The JSON of `metadata` goes into the response as it is.
    async with rows.create_pool(orjson.Fragment) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(asyncpg.CheckViolationError)
async def refuse(_: Request, error: asyncpg.CheckViolationError) -> Response:
    return Response(to_json({"detail": error.constraint_name}), 422, media_type=JSON)


def answer(row: asyncpg.Record | None, status: int = 200) -> Response:
    if row is None:
        raise HTTPException(404)
    return Response(to_json(dict(row)), status, media_type=JSON)


def to_json(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_UTC_Z)  # asyncpg has its own UUID


@app.get("/api/{user_id}/tasks")
async def list_tasks(owner: Owner, limit: Annotated[int, Query(ge=1, le=200)] = 100) -> Response:
    page = await app.state.pool.fetch(rows.LIST, owner, limit)
    return Response(to_json([dict(row) for row in page]), media_type=JSON)


@app.post("/api/{user_id}/tasks")
async def create_task(new: TaskCreate, owner: Owner) -> Response:
    row = await rows.insert(app.state.pool, owner, new)
    response = answer(row, 201)
    response.headers["Location"] = f"/api/{owner}/tasks/{row['id']}"
    return response


@app.get("/api/{user_id}/tasks/{task_id}")
async def get_task(task_id: UUID, owner: Owner) -> Response:
    return answer(await app.state.pool.fetchrow(rows.FIND, owner, task_id))


@app.patch("/api/{user_id}/tasks/{task_id}")
async def patch_task(task_id: UUID, patch: TaskUpdate, owner: Owner) -> Response:
    changes = patch.model_dump(exclude_unset=True)
    return answer(await rows.update(app.state.pool, owner, task_id, changes))


@app.patch("/api/{user_id}/tasks/{task_id}/complete")
async def complete_task(
    task_id: UUID, owner: Owner, completion: Completion | None = None
) -> Response:
    changes = {"completed": completion is None or completion.completed}
    return answer(await rows.update(app.state.pool, owner, task_id, changes))


@app.delete("/api/{user_id}/tasks/{task_id}")
async def delete_task(task_id: UUID, owner: Owner) -> Response:
    if await app.state.pool.execute(rows.DELETE, owner, task_id) != "UPDATE 1":
        raise HTTPException(404)
    return Response(status_code=204)
