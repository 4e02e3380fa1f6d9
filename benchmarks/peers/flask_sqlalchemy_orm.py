"""Flask with Flask-SQLAlchemy and marshmallow, as in their documentation."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, time
from typing import Any
from uuid import UUID

from flask import Flask, Response, abort, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from marshmallow import Schema, ValidationError, fields, validate
from members import DUE, ZONES, merged_metadata, moment
from sqlalchemy import DateTime, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tokens import SECRET, user_of
from uuid_utils.compat import uuid7


class Base(DeclarativeBase):
    pass


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"].replace("://", "+psycopg://", 1)
db = SQLAlchemy(app, model_class=Base)


class Task(db.Model):
    __tablename__ = "tasks"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    title: Mapped[str]
    description: Mapped[str | None]
    completed: Mapped[bool] = mapped_column(default=False)
    completed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    priority: Mapped[str] = mapped_column(default="none")
    labels: Mapped[list[str]] = mapped_column(ARRAY(Text), default=[])
    due_date: Mapped[date | None]
    due_time: Mapped[time | None]
    time_zone: Mapped[str | None]
    due_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    start_date: Mapped[date | None]
    list_id: Mapped[UUID | None]
    parent_id: Mapped[UUID | None]
    position: Mapped[str] = mapped_column(default="")  # the trigger sets it
    # SQLAlchemy reserves the name `metadata`.
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", JSONB, default={})
    # The trigger sets these three.
    created_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    revision: Mapped[int] = mapped_column(default=0)
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class StrippedString(fields.String):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        return super()._deserialize(value, *args, **kwargs).strip()


class TrueOrFalse(fields.Boolean):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


def check_labels(labels: list[str]) -> None:
    if len({label.casefold() for label in labels}) < len(labels):
        raise ValidationError("Two labels differ only in case.")


DAY = validate.Range(date(1970, 1, 1), date(9999, 12, 30))
LABEL = (validate.Length(1, 60), validate.Regexp(r"[^,\x00-\x1f\x7f]*\Z"))


class TaskSchema(Schema):
    id = fields.UUID(dump_only=True)
    user_id = fields.UUID(dump_only=True)
    title = StrippedString(required=True, validate=validate.Length(1, 255))
    description = fields.String(allow_none=True, validate=validate.Length(max=10_000))
    completed = TrueOrFalse()
    completed_at = fields.AwareDateTime(allow_none=True)
    priority = fields.String(validate=validate.OneOf(["none", "low", "medium", "high"]))
    labels = fields.List(
        StrippedString(validate=LABEL), validate=(validate.Length(max=20), check_labels)
    )
    due_date = fields.Date(allow_none=True, validate=DAY)
    due_time = fields.Time(allow_none=True)
    time_zone = fields.String(allow_none=True, validate=validate.OneOf(ZONES))
    due_at = fields.DateTime(dump_only=True)
    start_date = fields.Date(allow_none=True, validate=DAY)
    metadata_ = fields.Dict(
        fields.String(validate=validate.Length(1, 40)),
        fields.String(allow_none=True, validate=validate.Length(max=200)),
        data_key="metadata",
        validate=validate.Length(max=20),
    )
    created_at = fields.DateTime(dump_only=True)
    updated_at = fields.DateTime(dump_only=True)
    revision = fields.Integer(dump_only=True)
    list_id = fields.UUID(dump_only=True)
    parent_id = fields.UUID(dump_only=True)
    position = fields.String(dump_only=True)


class CompletionSchema(Schema):
    completed = TrueOrFalse(load_default=True)


task_schema, tasks_schema = TaskSchema(), TaskSchema(many=True)
changes_schema, completion_schema = TaskSchema(partial=True), CompletionSchema()


@app.before_request
def authenticate() -> None:
    if not SECRET:
        return
    user = user_of(request.headers.get("Authorization"))
    if user is None:
        abort(401)
    if user != str((request.view_args or {}).get("user_id")):
        abort(404)


@app.errorhandler(ValidationError)
def refuse(error: ValidationError) -> tuple[Any, int]:
    return error.messages_dict, 422


@app.errorhandler(IntegrityError)
def refuse_by_rule(_: IntegrityError) -> tuple[Any, int]:
    return {"detail": "The task breaks a rule."}, 422


def find(user_id: UUID, task_id: UUID) -> Task:
    return db.one_or_404(
        db.select(Task).filter_by(user_id=user_id, id=task_id).where(Task.deleted_at.is_(None))
    )


@app.get("/api/<uuid:user_id>/tasks")
def list_tasks(user_id: UUID) -> Response:
    limit = request.args.get("limit", 100, type=int)
    if not 1 <= limit <= 200:  # noqa: PLR2004
        abort(422)
    found = db.session.scalars(
        db.select(Task)
        .filter_by(user_id=user_id)
        .where(Task.deleted_at.is_(None))
        .order_by(Task.created_at.desc(), Task.id.desc())
        .limit(limit)
    )
    return jsonify(tasks_schema.dump(found))


@app.post("/api/<uuid:user_id>/tasks")
def create_task(user_id: UUID) -> tuple[Any, int, dict[str, str]]:
    task = Task(user_id=user_id, metadata_={})
    write(task, task_schema.load(request.get_json()))
    db.session.add(task)
    db.session.commit()
    return task_schema.dump(task), 201, {"Location": f"{request.path}/{task.id}"}


@app.get("/api/<uuid:user_id>/tasks/<uuid:task_id>")
def get_task(user_id: UUID, task_id: UUID) -> Any:
    return task_schema.dump(find(user_id, task_id))


def write(task: Task, values: dict[str, Any]) -> None:
    """Write these members into the task, and the moment that follows from them."""
    if "metadata_" in values:
        values["metadata_"] = merged_metadata(task.metadata_, values["metadata_"])
    if "labels" in values:
        values["labels"].sort()
    for name, value in values.items():
        setattr(task, name, value)
    if values.keys() & set(DUE):
        task.due_at = moment(task.due_date, task.due_time, task.time_zone)


def changed(task: Task, changes: dict[str, Any]) -> Any:
    write(task, changes)
    db.session.commit()
    return task_schema.dump(task)


@app.patch("/api/<uuid:user_id>/tasks/<uuid:task_id>")
def patch_task(user_id: UUID, task_id: UUID) -> Any:
    return changed(find(user_id, task_id), changes_schema.load(request.get_json()))


@app.patch("/api/<uuid:user_id>/tasks/<uuid:task_id>/complete")
def complete_task(user_id: UUID, task_id: UUID) -> Any:
    completion = completion_schema.load(request.get_json() if request.content_length else {})
    return changed(find(user_id, task_id), completion)


@app.delete("/api/<uuid:user_id>/tasks/<uuid:task_id>")
def delete_task(user_id: UUID, task_id: UUID) -> tuple[str, int]:
    find(user_id, task_id).deleted_at = datetime.now(UTC)
    db.session.commit()
    return "", 204
