"""FastAPI with SQLModel on asyncpg, as in their documentation."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time
from typing import Annotated, Any
from uuid import UUID

import members
import pydantic
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from members import Completion, TaskCreate, TaskUpdate
from owner import Owner
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Column, DateTime, Field, SQLModel, Text, col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from uuid_utils.compat import uuid7


class Task(SQLModel, table=True):
    __tablename__ = "tasks"

    user_id: UUID = Field(primary_key=True)
    id: UUID = Field(default_factory=uuid7, primary_key=True)
    title: str
    description: str | None = None
    completed: bool = False
    completed_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    priority: str = "none"
    labels: list[str] = Field(default=[], sa_type=ARRAY(Text))
    due_date: date | None = None
    due_time: time | None = None
    time_zone: str | None = None
    due_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    start_date: date | None = None
    list_id: UUID | None = None
    parent_id: UUID | None = None
    position: str = ""  # the trigger sets it
    # SQLAlchemy reserves the name `metadata`.
    metadata_: dict[str, str] = Field(default={}, sa_column=Column("metadata", JSONB))
    # The trigger sets these three.
    created_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    updated_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    revision: int = 0
    deleted_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


class TaskPublic(members.Task):
    metadata: dict[str, str] = pydantic.Field(validation_alias="metadata_")


engine = create_async_engine(os.environ["DATABASE_URL"].replace("://", "+asyncpg://", 1))


async def get_session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]

app = FastAPI()


@app.exception_handler(IntegrityError)
async def refuse(_: Request, __: IntegrityError) -> Response:
    return JSONResponse({"detail": "The task breaks a rule."}, 422)


async def find(session: AsyncSession, owner: UUID, task_id: UUID) -> Task:
    statement = select(Task).where(
        Task.user_id == owner, Task.id == task_id, col(Task.deleted_at).is_(None)
    )
    task = (await session.exec(statement)).one_or_none()
    if task is None:
        raise HTTPException(404)
    return task


def write(task: Task, values: dict[str, Any]) -> Task:
    """Write these members into the task, and the moment that follows from them."""
    if "metadata" in values:
        values["metadata_"] = members.merged_metadata(task.metadata_, values.pop("metadata"))
    task.sqlmodel_update(values)
    if values.keys() & set(members.DUE):
        task.due_at = members.moment(task.due_date, task.due_time, task.time_zone)
    return task


async def saved(session: AsyncSession, task: Task) -> Task:
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task


@app.get("/api/{user_id}/tasks", response_model=list[TaskPublic])
async def list_tasks(
    owner: Owner, session: Session, limit: Annotated[int, Query(ge=1, le=200)] = 100
) -> list[Task]:
    statement = (
        select(Task)
        .where(Task.user_id == owner, col(Task.deleted_at).is_(None))
        .order_by(col(Task.created_at).desc(), col(Task.id).desc())
        .limit(limit)
    )
    return list((await session.exec(statement)).all())


@app.post("/api/{user_id}/tasks", response_model=TaskPublic, status_code=201)
async def create_task(new: TaskCreate, owner: Owner, session: Session, response: Response) -> Task:
    task = await saved(session, write(Task(user_id=owner), new.model_dump()))
    response.headers["Location"] = f"/api/{owner}/tasks/{task.id}"
    return task


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def get_task(task_id: UUID, owner: Owner, session: Session) -> Task:
    return await find(session, owner, task_id)


@app.patch("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def patch_task(task_id: UUID, changes: TaskUpdate, owner: Owner, session: Session) -> Task:
    task = await find(session, owner, task_id)
    return await saved(session, write(task, changes.model_dump(exclude_unset=True)))


@app.patch("/api/{user_id}/tasks/{task_id}/complete", response_model=TaskPublic)
async def complete_task(
    task_id: UUID, owner: Owner, session: Session, completion: Completion | None = None
) -> Task:
    task = await find(session, owner, task_id)
    task.completed = completion is None or completion.completed
    return await saved(session, task)


@app.delete("/api/{user_id}/tasks/{task_id}", status_code=204)
async def delete_task(task_id: UUID, owner: Owner, session: Session) -> None:
    task = await find(session, owner, task_id)
    task.deleted_at = datetime.now(UTC)
    session.add(task)
    await session.commit()
