"""FastAPI with SQLModel on asyncpg, as in their documentation."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Response
from pydantic import ConfigDict, StrictBool, StringConstraints
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import DateTime, Field, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from tokens import SECRET, user_of
from uuid_utils.compat import uuid7

Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
Description = Annotated[str, StringConstraints(max_length=10_000)]


class Task(SQLModel, table=True):
    __tablename__ = "tasks"

    user_id: UUID = Field(primary_key=True)
    id: UUID = Field(default_factory=uuid7, primary_key=True)
    title: str
    description: str | None = None
    completed: bool = False
    # The trigger sets these three.
    created_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    updated_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    revision: int = 0
    deleted_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


class TaskPublic(SQLModel):
    id: UUID
    user_id: UUID
    title: str
    description: str | None
    completed: bool
    created_at: datetime
    updated_at: datetime
    revision: int


class TaskCreate(SQLModel):
    model_config = ConfigDict(extra="forbid")

    title: Title
    description: Description | None = None
    completed: StrictBool = False


class TaskUpdate(SQLModel):
    model_config = ConfigDict(extra="forbid")

    title: Title = ""
    description: Description | None = None
    completed: StrictBool = False


class Completion(SQLModel):
    model_config = ConfigDict(extra="forbid")

    completed: StrictBool = True


engine = create_async_engine(os.environ["DATABASE_URL"].replace("://", "+asyncpg://", 1))


async def get_session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


async def get_owner(user_id: UUID, authorization: Annotated[str | None, Header()] = None) -> UUID:
    if SECRET:
        user = user_of(authorization)
        if user is None:
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
        if user != str(user_id):
            raise HTTPException(404)
    return user_id


Session = Annotated[AsyncSession, Depends(get_session)]
Owner = Annotated[UUID, Depends(get_owner)]

app = FastAPI()


async def find(session: AsyncSession, owner: UUID, task_id: UUID) -> Task:
    statement = select(Task).where(
        Task.user_id == owner, Task.id == task_id, col(Task.deleted_at).is_(None)
    )
    task = (await session.exec(statement)).one_or_none()
    if task is None:
        raise HTTPException(404)
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
    task = await saved(session, Task.model_validate(new, update={"user_id": owner}))
    response.headers["Location"] = f"/api/{owner}/tasks/{task.id}"
    return task


@app.get("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def get_task(task_id: UUID, owner: Owner, session: Session) -> Task:
    return await find(session, owner, task_id)


@app.patch("/api/{user_id}/tasks/{task_id}", response_model=TaskPublic)
async def patch_task(task_id: UUID, changes: TaskUpdate, owner: Owner, session: Session) -> Task:
    task = await find(session, owner, task_id)
    task.sqlmodel_update(changes.model_dump(exclude_unset=True))
    return await saved(session, task)


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
