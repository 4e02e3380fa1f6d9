"""A resource for tests, `widgets`, with fields of every type and option."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from tests.support.postgresql import execute
from todo_api.app import RESOURCES
from todo_api.db import tables
from todo_api.resources.calendar_types import DateType, TimeOfDayType, TimestampType, TimeZoneType
from todo_api.resources.collection_types import LabelsType, TextObjectType
from todo_api.resources.fields import Field
from todo_api.resources.resource import Resource, resource_table
from todo_api.resources.row_function import json_function, row_function
from todo_api.resources.types import BooleanType, ColorType, EnumType, IntegerType, TextType
from todo_api.resources.views import (
    add_collection_routes,
    add_feed_routes,
    add_item_routes,
    add_trash_routes,
)
from todo_api.web.blueprints import Blueprint

if TYPE_CHECKING:
    from flask import Flask

metadata = MetaData(naming_convention=tables.metadata.naming_convention)
tables.users.to_metadata(metadata)

FIELDS = (
    Field(
        name="name",
        type=TextType(minimum=2, maximum=20),
        required=True,
        is_filterable=True,
        is_sortable=True,
        description="The name of the widget.",
        example="A name",
    ),
    Field(
        name="remark",
        type=TextType(maximum=40, is_stripped=True),
        nullable=True,
        is_filterable=True,
        description="A remark on the widget.",
        example="A remark",
    ),
    Field(
        name="priority",
        type=IntegerType(minimum=-3, maximum=9),
        nullable=True,
        is_filterable=True,
        is_sortable=True,
        description="The priority of the widget.",
        example=3,
    ),
    Field(
        name="size",
        type=IntegerType(minimum=0, maximum=2**40),
        default=1,
        is_filterable=True,
        is_sortable=True,
        description="The size of the widget.",
        example=7,
    ),
    Field(
        name="is_open",
        type=BooleanType(),
        default=True,
        is_filterable=True,
        is_sortable=True,
        description="Whether the widget is open.",
        example=True,
    ),
    # Their order is not the alphabetical one.
    Field(
        name="shape",
        type=EnumType(values=("square", "circle", "oval")),
        nullable=True,
        is_filterable=True,
        is_sortable=True,
        description="The shape of the widget.",
        example="oval",
    ),
    Field(
        name="color",
        type=ColorType(),
        nullable=True,
        description="The colour of the widget.",
        example="#00ff7f",
    ),
    Field(
        name="made_date",
        type=DateType(),
        nullable=True,
        is_filterable=True,
        description="The day on which the widget was made.",
        example="2026-11-21",
    ),
    Field(
        name="opening_time",
        type=TimeOfDayType(),
        nullable=True,
        description="The time of the day at which the widget opens.",
        example="08:00:00",
    ),
    Field(
        name="time_zone",
        type=TimeZoneType(),
        nullable=True,
        description="The time zone of the widget.",
        example="Asia/Kathmandu",
    ),
    Field(
        name="checked_at",
        type=TimestampType(),
        nullable=True,
        is_filterable=True,
        is_sortable=True,
        description="When the widget was checked.",
        example="2020-11-21T09:30:00.000000Z",
    ),
    Field(
        name="labels",
        type=LabelsType(maximum=4, length=10),
        default=[],
        is_filterable=True,
        description="The labels of the widget.",
        example=["new"],
    ),
    Field(
        name="notes",
        type=TextObjectType(maximum=3, key_length=8, value_length=10),
        default={},
        description="Notes on the widget.",
        example={"color": "red"},
    ),
)

WIDGET = Resource(
    name="widget",
    table=resource_table(metadata, "widgets", FIELDS, indexes=(("created_at", "id"),)),
    fields=FIELDS,
    example_id="019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21",
    search=("name", "remark"),
)


# The statements of a migration for this resource, except CREATE TABLE and CREATE INDEX.
PROTECTION = """
    CREATE TRIGGER write_row_on_insert BEFORE INSERT ON widgets
    FOR EACH ROW EXECUTE FUNCTION write_widgets_row();
    CREATE TRIGGER write_row_on_update BEFORE UPDATE ON widgets
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION write_widgets_row();
    CREATE TRIGGER write_usage AFTER INSERT OR UPDATE ON widgets
    FOR EACH STATEMENT WHEN (current_setting('todo.usage', true) <> '')
    EXECUTE FUNCTION write_usage();
    CREATE TRIGGER count_deleted_rows AFTER DELETE ON widgets REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_deleted_rows();
    GRANT SELECT, INSERT, UPDATE, DELETE ON widgets TO todo_app;
    ALTER TABLE widgets ENABLE ROW LEVEL SECURITY;
    ALTER TABLE widgets FORCE ROW LEVEL SECURITY;
    CREATE POLICY owner ON widgets
    USING (user_id = nullif(current_setting('todo.user_id', true), '')::uuid);
"""


def create_widgets_table(url: str) -> None:
    """Create the table of the resource in a migrated database."""
    dialect = postgresql.dialect()
    execute(url, str(CreateTable(WIDGET.table).compile(dialect=dialect)))
    for index in WIDGET.table.indexes:
        execute(url, str(CreateIndex(index).compile(dialect=dialect)))
    execute(url, row_function(WIDGET))
    execute(url, json_function(WIDGET))
    execute(url, PROTECTION)


def add_widget_routes(app: Flask) -> None:
    """Add the routes of the resource to an application that has not served a request yet."""
    blueprint = Blueprint("widgets", __name__, url_prefix="/api/<id:user_id>")
    add_collection_routes(blueprint, WIDGET)
    add_item_routes(blueprint, WIDGET)
    add_trash_routes(blueprint, WIDGET)
    app.register_blueprint(blueprint)
    # The changes and the trash of tasks and widgets together.
    feeds = Blueprint("feeds", __name__, url_prefix="/api/<id:user_id>/all")
    add_feed_routes(feeds, (*RESOURCES, WIDGET))
    app.register_blueprint(feeds)
