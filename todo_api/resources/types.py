"""The types of fields. Columns, rules, schemas, filters and sort keys are made from them.

More types are in `calendar_types.py` and `collection_types.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from marshmallow import fields, validate
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Integer,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    literal_column,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.web.fields import (
    INVALID_COLOR,
    NOT_BLANK,
    BooleanParameter,
    Color,
    IntegerParameter,
    StrictBoolean,
    StrictInteger,
    StrictText,
    StrictUUID,
    StrippedText,
    WordsParameter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from sqlalchemy.types import TypeEngine

# The characters that Python's str.strip() removes, as an SQL literal for CHECK constraints.
WHITE_SPACE = "U&'{}'".format(
    "".join(f"\\{code:04X}" for code in range(0x10000) if chr(code).isspace())
)


class Rule(NamedTuple):
    """An SQL condition that a trigger checks, and the detail of the error if it is false."""

    condition: str
    detail: str


class SortKey(NamedTuple):
    """A key by which items are sorted, and the codec of its values in cursors.

    `to_cursor` converts the JSON values of `members` to the JSON value in the cursor.
    `to_parameter` converts the value in a cursor to the statement's parameter. It raises ValueError
    or TypeError for a value that `to_cursor` never returns.
    """

    expression: ColumnElement[Any]
    type: TypeEngine[Any]
    to_cursor: Callable[..., Any]
    to_parameter: Callable[[Any], Any]
    members: tuple[str, ...]


class Filter(NamedTuple):
    """A query parameter that filters items, and an SQL condition with a parameter of that name.

    `to_parameter` converts the query parameter's value to the bind parameter's. If `is_by_day`, the
    condition also has the parameters of `time_zones.Day`: the result depends on the day. For the
    values in `by_moment`, it depends on the moment. If there is a condition `single`, it is for a
    value that is a list of one element other than `not_single`. This element is then the bind
    parameter's value.
    """

    parameter: fields.Field[Any]
    condition: ColumnElement[bool]
    to_parameter: Callable[[Any], Any] = lambda value: value
    is_by_day: bool = False
    by_moment: frozenset[str] = frozenset()
    single: ColumnElement[bool] | None = None
    not_single: Any = None


def check_cursor_text(value: Any) -> str:
    """Return the text of a cursor. Raises TypeError or ValueError if PostgreSQL cannot store it."""
    if not isinstance(value, str) or "\x00" in value:
        raise TypeError(value)
    value.encode()  # ValueError for a lone surrogate
    return value


class FieldType(Protocol):
    """The type of a field: its column, its schemas, its rules."""

    @property
    def column_type(self) -> TypeEngine[Any]: ...

    def request_field(self, **options: Any) -> fields.Field[Any]:
        """Return the marshmallow field that reads a request's JSON value."""

    def patch_field(self, **options: Any) -> fields.Field[Any]:
        """Return the marshmallow field that reads a JSON value in a merge patch."""

    def response_field(self, **options: Any) -> fields.Field[Any]:
        """Return the marshmallow field that documents a response's JSON value."""

    def rules(self, name: str) -> Mapping[str, Rule]:
        """Return the rules for a value, `name` in SQL. Each key ends the name of a constraint."""

    def filters(self, column: Column[Any], example: Any) -> Mapping[str, Filter]:
        """Return the filters by this column. Each key is a query parameter."""

    def sort_key(self, column: Column[Any]) -> SortKey:
        """Return the key that sorts items by this column."""

    def new_value(self, column: Column[Any]) -> ColumnElement[Any]:
        """Return what an UPDATE writes into the column."""

    def parameters(self, name: str, value: Any) -> dict[str, Any]:
        """Return the parameters of `new_value` for a value of the field."""


class PlainType:
    """The base of most types: no rules, and the column has the value as it was sent."""

    def request_field(self, **options: Any) -> fields.Field[Any]:
        raise NotImplementedError

    def patch_field(self, **options: Any) -> fields.Field[Any]:
        return self.request_field(**options)

    def rules(self, name: str) -> Mapping[str, Rule]:  # noqa: ARG002
        return {}

    def filters(self, column: Column[Any], example: Any) -> Mapping[str, Filter]:  # noqa: ARG002
        raise TypeError(f"{column.name}: this type has no filters.")

    def sort_key(self, column: Column[Any]) -> SortKey:
        raise TypeError(f"{column.name}: this type has no order.")

    def new_value(self, column: Column[Any]) -> ColumnElement[Any]:
        return bindparam(f"new_{column.name}", type_=column.type)

    def parameters(self, name: str, value: Any) -> dict[str, Any]:
        return {f"new_{name}": value}


@dataclass(frozen=True)
class IdType(PlainType):
    """The id of an item. `reserved` are ids that no item has, and `detail` is the error of one."""

    reserved: tuple[UUID, ...] = ()
    detail: str = ""

    column_type = Uuid()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return StrictUUID(validate=validate.NoneOf(self.reserved, error=self.detail), **options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.UUID(**options)


@dataclass(frozen=True)
class ColorType(PlainType):
    """A colour as in HTML, `#rrggbb`; upper-case digits become lower-case ones."""

    column_type = Text()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return Color(**options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.String(validate=validate.Length(7, 7), **options)

    def rules(self, name: str) -> dict[str, Rule]:
        return {"format": Rule(f"{name} ~ '^#[0-9a-f]{{6}}$'", INVALID_COLOR)}


@dataclass(frozen=True, kw_only=True)
class TextType(PlainType):
    """Text of `minimum` to `maximum` characters, sorted by code point."""

    maximum: int
    minimum: int = 0
    is_stripped: bool = False

    column_type = Text()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        field = StrippedText if self.is_stripped else StrictText
        return field(validate=self._length(), **self._documented(options))

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.String(validate=self._length(), **self._documented(options))

    def _documented(self, options: dict[str, Any]) -> dict[str, Any]:
        if not self.is_stripped:
            return options
        return options | {"metadata": options["metadata"] | {"pattern": NOT_BLANK}}

    def _length(self) -> validate.Length:
        if self.minimum:
            return validate.Length(self.minimum, self.maximum, error=self._detail())
        return validate.Length(max=self.maximum, error=self._detail())

    def _detail(self) -> str:
        if self.minimum:
            return f"Must have {self.minimum} to {self.maximum} characters."
        return f"Must have at most {self.maximum} characters."

    def rules(self, name: str) -> dict[str, Rule]:
        length = f"char_length({name}) "
        length += (
            f"BETWEEN {self.minimum} AND {self.maximum}" if self.minimum else f"<= {self.maximum}"
        )
        rules = {"length": Rule(length, self._detail())}
        if self.is_stripped:
            stripped = f"{name} = btrim({name}, {WHITE_SPACE})"
            rules["stripped"] = Rule(stripped, "Must not have white space around it.")
        return rules

    def filters(self, column: Column[Any], example: Any) -> dict[str, Filter]:
        equal = column == bindparam(column.name, type_=Text)
        parameter = StrictText(
            validate=self._length(),
            metadata={
                "description": f"Only with this value of `{column.name}`.",
                "example": example,
            },
        )
        return {str(column.name): Filter(parameter, equal)}

    def sort_key(self, column: Column[Any]) -> SortKey:
        return SortKey(column.collate("C"), Text(), str, check_cursor_text, (str(column.name),))


@dataclass(frozen=True)
class BooleanType(PlainType):
    """true or false."""

    column_type = Boolean()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return StrictBoolean(**options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.Boolean(**options)

    def filters(self, column: Column[Any], example: Any) -> dict[str, Filter]:
        equal = column == bindparam(column.name, type_=Boolean)
        description = f"Only with this value of `{column.name}`."
        parameter = BooleanParameter(metadata={"description": description, "example": example})
        return {str(column.name): Filter(parameter, equal)}

    def sort_key(self, column: Column[Any]) -> SortKey:
        return SortKey(column, Boolean(), bool, self._checked, (str(column.name),))

    def _checked(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(value)
        return value


@dataclass(frozen=True, kw_only=True)
class IntegerType(PlainType):
    """A whole number of `minimum` to `maximum`. Null is sorted after all numbers."""

    minimum: int
    maximum: int

    @property
    def column_type(self) -> TypeEngine[int]:
        return BigInteger() if max(-self.minimum, self.maximum) >= 2**31 - 1 else Integer()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return StrictInteger(validate=self._range(), **options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.Integer(validate=self._range(), **options)

    def _range(self) -> validate.Range:
        return validate.Range(self.minimum, self.maximum, error=self._detail())

    def _detail(self) -> str:
        return f"Must be {self.minimum} to {self.maximum}."

    def rules(self, name: str) -> dict[str, Rule]:
        between = f"{name} BETWEEN {self.minimum} AND {self.maximum}"
        return {"range": Rule(between, self._detail())}

    def filters(self, column: Column[Any], example: Any) -> dict[str, Filter]:
        def filter_(suffix: str, operator: str, description: str) -> tuple[str, Filter]:
            name = f"{column.name}{suffix}"
            condition = column.op(operator, is_comparison=True)(
                bindparam(name, type_=self.column_type)
            )
            metadata = {"description": description, "example": example}
            parameter = IntegerParameter(validate=self._range(), metadata=metadata)
            return name, Filter(parameter, condition)

        return dict(
            (
                filter_("", "=", f"Only with this `{column.name}`."),
                filter_("_min", ">=", f"Only with this `{column.name}` or a greater one."),
                filter_("_max", "<=", f"Only with this `{column.name}` or a smaller one."),
            )
        )

    def sort_key(self, column: Column[Any]) -> SortKey:
        # For null: the first number above the maximum. CASE, because COALESCE under row-level
        # security prevents the use of an index.
        above_maximum: ColumnElement[int] = literal_column(str(self.maximum + 1))
        expression = case((column.is_(None), above_maximum), else_=column)
        return SortKey(
            expression, self.column_type, self._to_cursor, self._checked, (str(column.name),)
        )

    def _to_cursor(self, value: int | None) -> int:
        return self.maximum + 1 if value is None else value

    def _checked(self, value: Any) -> int:
        if type(value) is not int:
            raise TypeError(value)
        if not self.minimum <= value <= self.maximum + 1:
            raise ValueError(value)
        return value


@dataclass(frozen=True, kw_only=True)
class EnumType(PlainType):
    """One of these words, sorted in their order. Null is sorted after all words."""

    values: tuple[str, ...]

    column_type = Text()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        options["error_messages"] = {"invalid": self._detail()}
        return StrictText(validate=self._one_of(), **options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return fields.String(validate=self._one_of(), **options)

    def _one_of(self) -> validate.OneOf:
        return validate.OneOf(self.values, error=self._detail())

    def _detail(self) -> str:
        *others, last = self.values
        return f"Must be {', '.join(others)} or {last}."

    def rules(self, name: str) -> dict[str, Rule]:
        words = ", ".join(f"'{word}'" for word in self.values)
        return {"known": Rule(f"{name} IN ({words})", self._detail())}

    def filters(self, column: Column[Any], example: Any) -> dict[str, Filter]:
        name = str(column.name)
        is_one_of = column == any_(bindparam(name, type_=ARRAY(Text)))
        description = f"Only with this `{name}`. Several values, separated by commas, mean any."
        metadata = {"description": description, "example": example}
        return {name: Filter(WordsParameter(self.values, metadata), is_one_of)}

    def sort_key(self, column: Column[Any]) -> SortKey:
        ranks = [literal_column(str(rank), Integer) for rank in range(len(self.values) + 1)]
        words = [literal_column(f"'{word}'", Text) for word in self.values]
        expression = case(
            *((column == word, rank) for word, rank in zip(words, ranks[:-1], strict=True)),
            else_=ranks[-1],
        )
        return SortKey(expression, Integer(), self._to_cursor, self._checked, (str(column.name),))

    def _to_cursor(self, value: str | None) -> int:
        return len(self.values) if value is None else self.values.index(value)

    def _checked(self, value: Any) -> int:
        if type(value) is not int:
            raise TypeError(value)
        if not 0 <= value <= len(self.values):
            raise ValueError(value)
        return value
