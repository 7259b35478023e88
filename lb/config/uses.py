"""
Where the file speaks of plugins: `[plugins]`, and the `use` tables of listeners and routes.

What stands beside `use` belongs to the plugin, and is judged by its own Config once the rest of
the file is right (`lb.config.plugins`). What that gives is kept beside what was written, for our
own next process and for nobody else to see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from pydantic import (
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from lb.config.kinds import Choice, Name, OrOne, Text
from lb.config.secrets import HIDDEN, Secret
from lb.config.section import Section, internal

OWN: Final = "*"  # What our own keys begin with, which no file can write.


class Carrier(Section):
    """A section that carries more than the file may write, under aliases that begin with `OWN`."""

    model_config = ConfigDict(serialize_by_alias=True)

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        plain = handler(self)
        how = (info.context or {}).get("secrets")
        if how == "plain":
            return plain
        shown = {key: value for key, value in plain.items() if not key.startswith(OWN)}
        self.hide(shown, marked=how == "marked")
        return shown

    def hide(self, shown: dict[str, Any], *, marked: bool) -> None:
        """Change what is shown to others; `marked`: what differs is to stay different."""


class Use(Carrier):
    """One use of a plugin; what else stands here is the plugin's own."""

    noun = "the use of a plugin"
    model_config = ConfigDict(extra="allow")

    use: Annotated[str, Name()] = Field(
        description="Which plugin: one of those that come with Accord, of a folder, or enabled.",
        examples=["rate_limit"],
    )
    on_error: Annotated[str, Choice(("closed", "open"))] = Field(
        default="closed",
        description='When the plugin fails: "closed" answers 500, "open" goes on without it.',
    )
    values: dict[str, Any] | None = internal(None, "*values")
    secrets: list[str] = internal([], "*secrets")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"use": value} if isinstance(value, str) else value

    def hide(self, shown: dict[str, Any], *, marked: bool) -> None:
        """Put stars over secrets."""
        for path in self.secrets:
            _hide(shown, path.split("."), marked=marked)

    @property
    def settings(self) -> dict[str, Any]:
        """What is written beside our own keys."""
        return dict(self.model_extra or {})


class Plugins(Carrier):
    """Where plugins come from, and those that every request passes."""

    noun = "[plugins]"

    folders: Annotated[list[Annotated[str, Text()]], OrOne()] = Field(
        default=[],
        description="More folders of plugins, a file each, besides those that come with Accord;"
        " beside the file, if relative. Nobody else may be able to write into them.",
        examples=[["plugins"]],
    )
    enable: Annotated[list[Annotated[str, Name()]], OrOne()] = Field(
        default=[],
        description="Plugins of installed packages, by the names of their entry points.",
        examples=[["acme_auth"]],
    )
    use: Annotated[list[Use], OrOne()] = Field(
        default=[],
        description="What every request passes, before its listener's and its route's.",
        examples=[[{"use": "request_id"}]],
    )
    code: dict[str, dict[str, str]] = internal({}, "*code")

    def hide(self, shown: dict[str, Any], *, marked: bool) -> None:
        """Show the code's digests to who compares: what changed is told where only the code did."""
        if marked:
            shown["code"] = {name: each["digest"] for name, each in self.code.items()}


def uses_in(
    plugins: Plugins, listeners: Mapping[str, Any], routes: Mapping[str, Any]
) -> Iterator[tuple[tuple[str | int, ...], Use]]:
    """Yield every use with the path that leads to it in the file."""
    for index, use in enumerate(plugins.use):
        yield ("plugins", "use", index), use
    for table, sections in (("listener", listeners), ("route", routes)):
        for name, section in sections.items():
            for index, use in enumerate(section.plugins):
                yield (table, name, "plugins", index), use


def _hide(table: Any, path: list[str], *, marked: bool) -> None:
    """Put stars over what a path leads to; `*` in it stands for all there are."""
    key, *rest = path
    if isinstance(table, list) and key == OWN:
        places: list[Any] = list(range(len(table)))
    elif isinstance(table, dict):
        places = [each for each in table if key in (OWN, each)]
    else:
        return  # One value where several could stand: `_hide` was given its list's path.
    for place in places:
        if rest and isinstance(table[place], dict | list):
            _hide(table[place], rest, marked=marked)
        elif table[place]:
            table[place] = Secret.mark(table[place]) if marked else HIDDEN
