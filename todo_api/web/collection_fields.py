"""Strict marshmallow fields for arrays and objects of text in requests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from marshmallow import ValidationError, fields, validate

from todo_api.web.fields import LONE_SURROGATE, StrictText

if TYPE_CHECKING:
    from collections.abc import Mapping


# Control characters: C0, DELETE and C1.
CONTROL = r"\x00-\x1f\x7f-\x9f"
CONTROL_CHARACTER = re.compile(f"[{CONTROL}]")
REFUSED = f",{CONTROL}"
# White space that is not a control character.
SPACES = r"\x20\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


# The length of a query parameter that lists labels.
LABELS_LENGTH = 1300


# The pattern of one label, without its start and end.
LABEL_PATTERN = f"[^{REFUSED}]*[^{REFUSED}{SPACES}][^{REFUSED}]*"


class MergePatch(dict[str, str | None]):
    """The object in a JSON merge patch (RFC 7396): null removes a key, other keys stay."""


class Label(StrictText):
    """Text without commas and control characters. White space at its start and end is removed."""

    def __init__(self, maximum: int, **options: Any) -> None:
        length = validate.Length(1, maximum, error=f"Must have 1 to {maximum} characters.")
        metadata = options.pop("metadata", {}) | {"pattern": f"^{LABEL_PATTERN}$"}
        super().__init__(validate=length, metadata=metadata, **options)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        label = super()._deserialize(value, *args, **kwargs)
        if "," in label:
            raise ValidationError("Must not have a comma.")
        if CONTROL_CHARACTER.search(label):
            raise ValidationError("Must not have a control character.")
        return label.strip()


class LabelSet(fields.List[str]):
    """An array of labels, no two of them equal by case-folding. The result is sorted."""

    def __init__(self, label: Label, maximum: int, **options: Any) -> None:
        length = validate.Length(max=maximum, error=f"Must have at most {maximum} labels.")
        super().__init__(label, validate=length, **options)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            raise ValidationError("Must be an array of strings.")
        labels = [str(label) for label in super()._deserialize(value, *args, **kwargs)]
        places: dict[str, int] = {}
        for place, label in enumerate(labels):
            first = places.setdefault(label.casefold(), place)
            if first != place:
                detail = f"Is the same label as number {first} of the array, ignoring case."
                raise ValidationError({place: [detail]})
        return sorted(labels)


class LabelsParameter(fields.String):
    """One or more labels, separated by commas. The value is a sorted list, each label once."""

    def __init__(self, label: Label, maximum: int, metadata: Mapping[str, Any]) -> None:
        pattern = f"^{LABEL_PATTERN}(?:,{LABEL_PATTERN})*$"
        lengths = {"minLength": 1, "maxLength": LABELS_LENGTH}
        super().__init__(metadata={**metadata, **lengths, "pattern": pattern})
        self.label, self.maximum = label, maximum

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        labels = {str(self.label.deserialize(text)) for text in value.split(",")}
        if len(labels) > self.maximum:
            raise ValidationError(f"Must have at most {self.maximum} labels.")
        return sorted(labels)


class TextObject(fields.Dict):
    """An object whose values are strings."""

    def __init__(
        self,
        maximum: int,
        key_length: int,
        value_length: int,
        *,
        is_patch: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            keys=StrictText(),
            values=StrictText(validate=validate.Length(max=value_length), allow_none=is_patch),
            **options,
        )
        self.maximum, self.key_length, self.value_length = maximum, key_length, value_length
        self.is_patch = is_patch
        names = {"minLength": 1, "maxLength": key_length}
        self.metadata = {**self.metadata, "maxProperties": maximum, "propertyNames": names}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        if not isinstance(value, dict):
            raise ValidationError("Must be an object of strings.")
        # A merge patch may remove keys: the database counts the keys of the result.
        if sum(each is not None for each in value.values()) > self.maximum:
            raise ValidationError(f"Must have at most {self.maximum} keys.")
        faults = {key: [fault] for key in value if (fault := self._find_fault(key, value[key]))}
        if faults:
            raise ValidationError(faults)
        return MergePatch(value) if self.is_patch else value

    def _find_fault(self, key: str, value: Any) -> str | None:
        if not 1 <= len(key) <= self.key_length:
            return f"A key must have 1 to {self.key_length} characters."
        if value is None and self.is_patch:
            value = ""
        if not isinstance(value, str):
            return "Must be a string."
        if "\x00" in key + value or LONE_SURROGATE.search(key + value):
            return "U+0000 and lone surrogates are not allowed."
        if len(value) > self.value_length:
            return f"Must have at most {self.value_length} characters."
        return None
