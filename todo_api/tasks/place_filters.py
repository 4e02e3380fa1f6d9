"""Filters of tasks by list, parent and archive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from marshmallow import ValidationError, fields
from sqlalchemy import Boolean, Uuid, any_, bindparam, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import OWNER
from todo_api.lists.fields import LIST
from todo_api.resources.types import Filter
from todo_api.web.fields import EXAMPLE_ITEM_ID, UUID_TEXT, BooleanParameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Table

    from todo_api.resources.types import FilterCondition

MAX_IDS = 50
UUID_PATTERN = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
NIL = UUID(int=0)


class IdsParameter(fields.String):
    """Ids, separated by commas; a word stands for the nil UUID. The value is sorted text."""

    def __init__(self, word: str, description: str) -> None:
        one = f"(?:{word}|{UUID_PATTERN})"
        super().__init__(
            metadata={
                "description": description,
                "pattern": f"^{one}(?:,{one})*$",
                "maxLength": MAX_IDS * 37,
                "example": EXAMPLE_ITEM_ID,
            }
        )
        self.word = word

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        texts = value.split(",")
        if len(texts) > MAX_IDS:
            raise ValidationError(f"Must have at most {MAX_IDS} ids.")
        if any(text != self.word and not UUID_TEXT.fullmatch(text) for text in texts):
            raise ValidationError(f"Must be UUIDs or {self.word}, separated by commas.")
        return sorted({str(NIL if text == self.word else UUID(text)) for text in texts})
