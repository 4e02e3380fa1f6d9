"""FastAPI with an asyncpg pool, and pydantic for the responses (`response_model`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import orjson
import rows
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from members import Completion, Task, TaskCreate, TaskUpdate
from owner import Owner


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with rows.create_pool(orjson.loads) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(asyncpg.CheckViolationError)
async def refuse(_: Request, error: asyncpg.CheckViolationError) -> Response:
    return JSONResponse({"detail": error.constraint_name}, 422)


def answer(row: asyncpg.Record | None) -> dict[str, Any]:
    if row is None:
        raise HTTPException(404)
    return dict(row)


@app.get("/api/{user_id}/tasks", response_model=list[Task])
async def list_tasks(
    owner: Owner, limit: Annotated[int, Query(ge=1, le=200)] = 100
) -> list[dict[str, Any]]:
    return [dict(row) for row in await app.state.pool.fetch(rows.LIST, owner, limit)]


@app.post("/api/{user_id}/tasks", response_model=Task, status_code=201)
async def create_task(new: TaskCreate, owner: Owner, response: Response) -> dict[str, Any]:
    row = await rows.insert(app.state.pool, owner, new)
    response.headers["Location"] = f"/api/{owner}/tasks/{row['id']}"
    return answer(row)


@app.get("/api/{user_id}/tasks/{task_id}", response_model=Task)
async def get_task(task_id: UUID, owner: Owner) -> dict[str, Any]:
    return answer(await app.state.pool.fetchrow(rows.FIND, owner, task_id))


@app.patch("/api/{user_id}/tasks/{task_id}", response_model=Task)
async def patch_task(task_id: UUID, patch: TaskUpdate, owner: Owner) -> dict[str, Any]:
    changes = patch.model_dump(exclude_unset=True)
    return answer(await rows.update(app.state.pool, owner, task_id, changes))


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=Task)
async def complete_task(
    task_id: UUID, owner: Owner, completion: Completion | None = None
) -> dict[str, Any]:
    changes = {"completed": completion is None or completion.completed}
    return answer(await rows.update(app.state.pool, owner, task_id, changes))


@app.delete("/api/{user_id}/tasks/{task_id}", status_code=204)
async def delete_task(task_id: UUID, owner: Owner) -> None:
    if await app.state.pool.execute(rows.DELETE, owner, task_id) != "UPDATE 1":
        raise HTTPException(404)
