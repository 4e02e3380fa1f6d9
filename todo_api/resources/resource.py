"""A resource: a kind of row that users own, with its table, schemas, filters and sort keys.

In the texts that clients read, a resource is one such row, as in HTTP (RFC 9110, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from marshmallow import validate
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    ForeignKeyConstraint,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    bindparam,
    func,
    or_,
    text,
)

from todo_api.resources.calendar_types import TimestampType
from todo_api.resources.fields import Field
from todo_api.resources.schemas import Schemas
from todo_api.resources.statements import Statements
from todo_api.resources.types import Filter, SortKey
from todo_api.web.fields import EXAMPLE_TIMESTAMP, StrictText

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import marshmallow

SEARCH_LENGTH = 100

# Both are also filters and sort keys of every resource.
TIMESTAMPS = (
    Field(
        name="created_at",
        type=TimestampType(),
        description="When it was created, in UTC.",
        example=EXAMPLE_TIMESTAMP,
        is_read_only=True,
        is_filterable=True,
        is_sortable=True,
    ),
    Field(
        name="updated_at",
        type=TimestampType(),
        description="When it was last changed, in UTC.",
        example=EXAMPLE_TIMESTAMP,
        is_read_only=True,
        is_filterable=True,
        is_sortable=True,
    ),
)
SEARCH_FIELD = "q"

# The problem kind of each quota that the function `change_usage` (migrations/) checks.
QUOTAS = dict.fromkeys(("quota", "quota_with_trash", "quota_bytes"), "quota")


def resource_table(
    metadata: MetaData,
    name: str,
    declared: Sequence[Field],
    *,
    indexes: Sequence[Sequence[str]],
    hidden: Sequence[Column[Any]] = (),
) -> Table:
    """Return the table of a resource: its fields, and what every resource has.

    Each entry of `indexes` lists the columns that follow `user_id` in an index on live rows. The
    columns `hidden` are not in the representation.
    """
    now = func.clock_timestamp()
    timestamp = DateTime(timezone=True)
    table = Table(
        name,
        metadata,
        Column("user_id", Uuid, nullable=False),
        Column("id", Uuid, nullable=False),
        *(field.column() for field in declared),
        *hidden,
        # The trigger `write_row` (migrations/) sets these three columns while it holds the lock
        # on the owner's row. So rows become visible in the order of created_at and of revision.
        Column("created_at", timestamp, nullable=False, server_default=now),
        Column("updated_at", timestamp, nullable=False, server_default=now),
        Column("revision", BigInteger, nullable=False, server_default=text("0")),
        Column("deleted_at", timestamp),
        # The write attempt id of the latest change, which the trigger writes. It shows a retry
        # whether the first run was committed.
        Column("attempt", Uuid),
        # The revision of the latest deletion: rows that one request has deleted are restored
        # together.
        Column("deleted_with", BigInteger),
        # The representation, written by a trigger (row_function.py); NULL in a row that is not yet
        # renewed.
        Column("json", Text),
        PrimaryKeyConstraint("user_id", "id"),
        ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
    )
    for columns in indexes:
        Index(
            None,
            table.c.user_id,
            *(table.c[column] for column in columns),
            postgresql_where=table.c.deleted_at.is_(None),
        )
    # The indexes of /changes and of the trash.
    Index(None, table.c.user_id, table.c.revision, table.c.id)
    Index(
        None,
        table.c.user_id,
        table.c.deleted_at,
        postgresql_where=table.c.deleted_at.is_not(None),
    )
    return table


class MemberRule(NamedTuple):
    """A rule on several members: an SQL condition on the row NEW, and its errors.

    `details` has an error for each member, in this order: the 422 points at the first of them that
    was sent.
    """

    condition: str
    details: Mapping[str, str]


class ComputedColumn(NamedTuple):
    """A column whose value the application computes from members. It is NULL if one is null."""

    name: str
    sources: tuple[str, ...]
    compute: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Resource:
    """A kind of row that users own. `name` is singular ("task"); the table's name is the plural.

    `example_id` is an id for the documentation. `search` names the text fields that the query
    parameter `q` searches. `member_rules` are rules on several fields, by name. `computed` are the
    columns that the application computes, and `derivations` those that the trigger computes: an SQL
    expression on the row NEW for each. `more_filters` and `more_sort_keys` belong to no single
    field. `complete_filters` adds the filters that a query implies. A sort key in `sort_needs`
    needs one of these filters. `counted_by` names the fields by whose values items can be counted.
    `raised` has the details of the rules that other functions of the database check, by name and
    member, and `conflicts` the problem kind of each rule whose violation is a 409.
    """

    name: str
    table: Table
    fields: tuple[Field, ...]
    example_id: str
    search: tuple[str, ...] = ()
    member_rules: Mapping[str, MemberRule] = field(default_factory=dict)
    computed: tuple[ComputedColumn, ...] = ()
    derivations: Mapping[str, str] = field(default_factory=dict)
    more_filters: Mapping[str, Filter] = field(default_factory=dict)
    more_sort_keys: Mapping[str, SortKey] = field(default_factory=dict)
    complete_filters: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    sort_needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counted_by: tuple[str, ...] = ()
    raised: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    conflicts: Mapping[str, str] = field(default_factory=dict)
    statements_type: type[Statements] = Statements

    @property
    def plural(self) -> str:
        return self.table.name

    @property
    def id_parameter(self) -> str:
        """The name of the id in paths."""
        return f"{self.name}_id"

    @cached_property
    def field_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @cached_property
    def writable_fields(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if not field.is_read_only)

    @cached_property
    def writable_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.writable_fields)

    @cached_property
    def written_columns(self) -> tuple[str, ...]:
        """The columns that requests write, except the ids and `deleted_at`."""
        return (*self.writable_names, *(column.name for column in self.computed))

    @cached_property
    def rules_by_constraint(self) -> dict[str, MemberRule]:
        """The rules that the trigger checks, by the name of the constraint in its error."""
        rules = {
            f"{field.name}_{ending}": MemberRule(rule.condition, {field.name: rule.detail})
            for field in self.fields
            for ending, rule in field.type.rules(f"NEW.{field.name}").items()
        }
        return {
            f"ck_{self.plural}_{name}": rule
            for name, rule in (rules | {**self.member_rules}).items()
        }

    @cached_property
    def constraints(self) -> dict[str, Mapping[str, str]]:
        """For each constraint that a request can violate, the details of the error, by member."""
        checked = {name: rule.details for name, rule in self.rules_by_constraint.items()}
        raised = {f"ck_{self.plural}_{name}": details for name, details in self.raised.items()}
        return {**checked, **raised}

    @cached_property
    def by_name(self) -> dict[str, Field]:
        """The fields, and the timestamps that every resource has, by name."""
        return {field.name: field for field in (*self.fields, *TIMESTAMPS)}

    @cached_property
    def stored_fields(self) -> dict[str, marshmallow.fields.Field[Any]]:
        """A marshmallow field for each member, to read its value in a representation."""
        return {
            field.name: field.type.request_field(**field.options())
            for field in self.writable_fields
        }

    @cached_property
    def statements(self) -> Statements:
        return self.statements_type(self)

    @cached_property
    def schemas(self) -> Schemas:
        return Schemas(self)

    @cached_property
    def sort_keys(self) -> Mapping[str, SortKey]:
        """The keys by which items can be sorted, by name."""
        keys = {
            name: field.type.sort_key(self.table.c[name])
            for name, field in self.by_name.items()
            if field.is_sortable
        }
        return {**keys, **self.more_sort_keys}

    @cached_property
    def filters(self) -> Mapping[str, Filter]:
        """The filters of items, by query parameter."""
        filters: dict[str, Filter] = {}
        for name, declared in self.by_name.items():
            if declared.is_filterable:
                filters |= declared.type.filters(self.table.c[name], declared.example)
        filters |= self.more_filters
        if self.search:
            filters[SEARCH_FIELD] = self._search_filter()
        return filters

    def _search_filter(self) -> Filter:
        pattern = bindparam(SEARCH_FIELD, type_=Text)
        places = [self.table.c[name] for name in self.search]
        condition: ColumnElement[bool] = or_(*(place.ilike(pattern) for place in places))
        description = (
            f"Only {self.plural} with this text in {' or '.join(self.search)}, ignoring case."
        )
        parameter = StrictText(
            validate=validate.Length(
                1, SEARCH_LENGTH, error="Must have {min} to {max} characters."
            ),
            metadata={"description": description, "example": "milk"},
        )
        return Filter(parameter, condition, like_pattern)


def like_pattern(part: str) -> str:
    """Return the LIKE pattern for texts that contain the part; escape its special characters."""
    escaped = part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
