"""Filters of tasks by list, parent and archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from marshmallow import ValidationError, fields
from sqlalchemy import Uuid, and_, any_, bindparam, func, null, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import OWNER
from todo_api.lists.fields import INBOX, LIST
from todo_api.resources.types import Filter
from todo_api.web.fields import EXAMPLE_LIST_ID, EXAMPLE_TASK_ID, UUID_TEXT, BooleanParameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Table

MAX_IDS = 50
UUID_PATTERN = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


class IdsParameter(fields.String):
    """Ids and a word, separated by commas. The value is sorted text."""

    def __init__(self, word: str, description: str, example: str) -> None:
        one = f"(?:{word}|{UUID_PATTERN})"
        super().__init__(
            metadata={
                "description": description,
                "pattern": f"^{one}(?:,{one})*$",
                "maxLength": MAX_IDS * 37,
                "example": example,
            }
        )
        self.word = word

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        texts = value.split(",")
        if len(texts) > MAX_IDS:
            raise ValidationError(f"Must have at most {MAX_IDS} ids.")
        if any(text != self.word and not UUID_TEXT.fullmatch(text) for text in texts):
            raise ValidationError(f"Must be UUIDs or {self.word}, separated by commas.")
        return sorted({text if text == self.word else str(UUID(text)) for text in texts})


def place_filters(table: Table) -> Mapping[str, Filter]:
    """Return the filters `list_id`, `parent_id` and `archived`."""
    columns, lists = table.c, LIST.table.c
    parents = bindparam("parent_id", type_=ARRAY(Uuid))
    archived_lists = select(lists.id).where(
        lists.user_id == OWNER, lists.archived, lists.deleted_at.is_(None)
    )
    return {
        "list_id": Filter(
            IdsParameter(
                "inbox",
                "Only tasks of this list, or of several lists, separated by commas. `inbox` is the "
                "Inbox.",
                EXAMPLE_LIST_ID,
            ),
            columns.place == any_(bindparam("list_id", type_=ARRAY(Uuid))),
            to_parameter=lambda value: replace_word(value, "inbox", INBOX),
            # An index serves the order within one list.
            single=columns.place == bindparam("list_id", type_=Uuid),
        ),
        "parent_id": Filter(
            IdsParameter(
                "none",
                "Only tasks directly below this task, or below several tasks, separated by commas. "
                "`none` means tasks without a parent.",
                EXAMPLE_TASK_ID,
            ),
            or_(
                columns.parent_id == any_(parents),
                # Not the nil UUID, which can be the id of a task.
                and_(
                    columns.parent_id.is_(None), func.array_position(parents, null()).is_not(None)
                ),
            ),
            to_parameter=lambda value: replace_word(value, "none", None),
            # An index finds the subtasks of one task.
            single=columns.parent_id == bindparam("parent_id", type_=Uuid),
            not_single="none",
        ),
        "archived": Filter(
            BooleanParameter(
                metadata={
                    "description": (
                        "With `true`, also tasks of archived lists. Otherwise they are left out, "
                        "unless `list_id` names their list."
                    ),
                    "example": True,
                }
            ),
            columns.place.not_in(archived_lists),
        ),
    }


def replace_word(value: str | list[str], word: str, replacement: str | None) -> Any:
    """Return the id or ids, with the replacement instead of the word."""
    if isinstance(value, str):
        return replacement if value == word else value
    return [replacement if text == word else text for text in value]


def complete_filters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out tasks of archived lists, unless the query asks for them or for certain lists."""
    others = {name: value for name, value in values.items() if name != "archived"}
    if "list_id" in values or values.get("archived"):
        return others
    return others | {"archived": False}
