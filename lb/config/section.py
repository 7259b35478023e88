"""What every table of the file is made of."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A table of the file. Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    noun: ClassVar[str]
    later: ClassVar[frozenset[str]] = frozenset()


def restart(default: Any, description: str, **more: Any) -> Any:
    """Declare a key whose change acts only after a restart or `lb upgrade`."""
    return Field(default, description=description, json_schema_extra={"restart": True}, **more)


def internal(default: Any, alias: str) -> Any:
    """Declare what goes with a section to our own next process, and is no key of the file."""
    return Field(default, alias=alias, json_schema_extra={"internal": True})


def keys_of(section: type[Section]) -> dict[str, FieldInfo]:
    """Return the keys that a file may write into a section."""
    return {name: field for name, field in section.model_fields.items() if not _is_internal(field)}


def _is_internal(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("internal"))


def needs_restart(field: FieldInfo | None) -> bool:
    """Whether a key was declared by `restart`."""
    extra = field.json_schema_extra if field else None
    return isinstance(extra, dict) and bool(extra.get("restart"))
