"""FastAPI with asyncpg and the guarantees of this API.

Each request runs as the role `todo_app` in a transaction of its own, so that row-level security
applies. Responses have an ETag and a request id, requests can be conditional, and each request
writes one line of JSON to the log and updates the metrics for Prometheus.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import asyncpg
import orjson
import rows
from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from members import Completion, TaskCreate, TaskUpdate
from owner import Owner
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from uuid_utils import uuid7

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]

JSON = "application/json"
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
TAG = re.compile(r'(?:W/)?"([^"]*)"')

ACT_AS_OWNER = """
    SELECT set_config('role', 'todo_app', true), set_config('todo.user_id', $1, true)
"""
FIND_REVISION = "SELECT revision FROM users WHERE id = $1"
# The page and the owner's revision in one snapshot; an empty page has no row.
LIST = rows.LIST.replace("SELECT", f"SELECT ({FIND_REVISION}) AS owner_revision,", 1)

REQUESTS = Counter("http_requests", "Responses sent.", ["route", "method", "status"])
DURATIONS = Histogram(
    "http_request_duration_seconds", "Seconds for each request.", ["route", "method", "status"]
)


class Observer:
    """Send a request id, log one line for each request, and update the metrics."""

    def __init__(self, application: Callable[..., Awaitable[None]]) -> None:
        self.application = application

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        started = time.perf_counter()
        sent_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent_id if REQUEST_ID.fullmatch(sent_id) else str(uuid7()).encode()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id))
            await send(message)

        try:
            await self.application(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", None)
            line = {
                "timestamp": datetime.now(UTC),
                "level": "info",
                "event": "request",
                "request_id": request_id.decode(),
                "method": scope["method"],
                "route": route,
                "status": status,
                "duration_ms": round(seconds * 1000, 2),
                "user_id": scope.get("path_params", {}).get("user_id"),
            }
            os.write(sys.stderr.fileno(), to_json(line) + b"\n")
            labels = (route or "", scope["method"], str(status))
            REQUESTS.labels(*labels).inc()
            DURATIONS.labels(*labels).observe(seconds)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # As in this API: a generic plan, so that PostgreSQL plans a prepared statement only once.
    settings = {"plan_cache_mode": "force_generic_plan"}
    async with rows.create_pool(orjson.Fragment, server_settings=settings) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(Observer)


@asynccontextmanager
async def acting_as(owner: UUID) -> AsyncIterator[asyncpg.Connection]:
    async with app.state.pool.acquire() as connection, connection.transaction():
        await connection.fetchrow(ACT_AS_OWNER, str(owner))
        yield connection


@app.exception_handler(asyncpg.CheckViolationError)
async def refuse(_: Request, error: asyncpg.CheckViolationError) -> Response:
    return Response(to_json({"detail": error.constraint_name}), 422, media_type=JSON)


def to_json(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_UTC_Z)  # asyncpg has its own UUID


def etag(version: object) -> str:
    return f'"{version}"'


def answer(row: asyncpg.Record | None, status: int = 200, **headers: str) -> Response:
    if row is None:
        raise HTTPException(404)
    headers |= {"ETag": etag(row["revision"]), "Cache-Control": "private, no-cache"}
    return Response(to_json(dict(row)), status, headers, JSON)


def revisions(if_match: str | None) -> list[int] | None:
    """Return the revisions of If-Match, or None if each revision is good."""
    if if_match is None or if_match.strip() == "*":
        return None
    return [int(tag) for tag in TAG.findall(if_match) if tag.isdecimal()]


def is_current(if_none_match: str | None, tag: str) -> bool:
    return if_none_match is not None and tag[1:-1] in TAG.findall(if_none_match)


IfMatch = Annotated[str | None, Header()]
IfNoneMatch = Annotated[str | None, Header()]


@app.get("/metrics")
def metrics() -> Response:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")


@app.get("/api/{user_id}/tasks")
async def list_tasks(
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=200)] = 100,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async with acting_as(owner) as connection:
        page = await connection.fetch(LIST, owner, limit)
        revision = (
            page[0]["owner_revision"] if page else await connection.fetchval(FIND_REVISION, owner)
        )
    tag = etag(f"{revision or 0}-{limit}")
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if is_current(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    tasks = [dict(row) for row in page]
    for task in tasks:
        del task["owner_revision"]
    return Response(to_json(tasks), 200, headers, JSON)


@app.post("/api/{user_id}/tasks")
async def create_task(new: TaskCreate, owner: Owner) -> Response:
    async with acting_as(owner) as connection:
        row = await rows.insert(connection, owner, new)
    return answer(row, 201, Location=f"/api/{owner}/tasks/{row['id']}")


@app.get("/api/{user_id}/tasks/{task_id}")
async def get_task(task_id: UUID, owner: Owner, if_none_match: IfNoneMatch = None) -> Response:
    async with acting_as(owner) as connection:
        row = await connection.fetchrow(rows.FIND, owner, task_id)
    if row is not None and is_current(if_none_match, tag := etag(row["revision"])):
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        return Response(status_code=304, headers=headers)
    return answer(row)


async def change(
    owner: UUID, task_id: UUID, changes: dict[str, Any], if_match: str | None
) -> Response:
    async with acting_as(owner) as connection:
        row = await rows.update(connection, owner, task_id, changes, revisions(if_match))
        if row is None and if_match is not None:
            current = await connection.fetchrow(rows.FIND, owner, task_id)
            if current is not None:
                return answer(current, 412)
    return answer(row)


@app.patch("/api/{user_id}/tasks/{task_id}")
async def patch_task(
    task_id: UUID, patch: TaskUpdate, owner: Owner, if_match: IfMatch = None
) -> Response:
    return await change(owner, task_id, patch.model_dump(exclude_unset=True), if_match)


@app.patch("/api/{user_id}/tasks/{task_id}/complete")
async def complete_task(
    task_id: UUID, owner: Owner, completion: Completion | None = None, if_match: IfMatch = None
) -> Response:
    changes = {"completed": completion is None or completion.completed}
    return await change(owner, task_id, changes, if_match)


@app.delete("/api/{user_id}/tasks/{task_id}")
async def delete_task(task_id: UUID, owner: Owner, if_match: IfMatch = None) -> Response:
    delete = {"deleted_at": datetime.now(UTC)}
    response = await change(owner, task_id, delete, if_match)
    return Response(status_code=204) if response.status_code == 200 else response  # noqa: PLR2004
