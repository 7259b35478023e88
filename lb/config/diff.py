"""What differs between two configurations, in words; and what of it needs a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_origin

from lb.config import toml
from lb.config.judge import section_at
from lb.config.schema import Config
from lb.config.secrets import MARKED, unmarked
from lb.config.section import needs_restart

TOKENS = "admin.tokens"
WRITTEN_MAX = 200  # Characters of a value that a line of changes repeats.


@dataclass(frozen=True, slots=True)
class Changes:
    """
    `changed` acts at a reload; `needs_restart` is kept until one, or until `lb upgrade`.

    `about` says of which backend a line of `changed` is: upstream and key.
    """

    changed: list[str] = field(default_factory=list)
    needs_restart: list[str] = field(default_factory=list)
    about: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changed or self.needs_restart)

    def as_plain(self) -> dict[str, list[str]]:
        """For JSON."""
        return {"changed": self.changed, "needs_restart": self.needs_restart}


def diff(old: Config, new: Config) -> Changes:
    """Compare two configurations, key by key, in the order of the schema."""
    changes = Changes()
    before, after = (each.model_dump(mode="json", context=MARKED) for each in (old, new))
    guarded = security_changes(old, new)
    for key, field_info in Config.model_fields.items():
        if get_origin(field_info.annotation) is dict:
            for words, about in _named(key, before[key], after[key]):
                changes.changed.append(words)
                if about is not None:
                    changes.about[words] = about
            continue
        for path, words in _values(key, before[key], after[key]):
            if _needs_restart(path) or (guarded and path.startswith(guarded)):
                changes.needs_restart.append(words)
            else:
                changes.changed.append(words)
    return changes


def _named(
    what: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, str] | None]]:
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield f"{what}.{name} added", None
        elif name not in new:
            yield f"{what}.{name} removed", None
        else:
            before, after = dict(old[name]), dict(new[name])
            backends = before.pop("backends", None), after.pop("backends", None)
            for _, words in _values(f"{what}.{name}", before, after):
                yield words, None
            for words, key in _backends(f"{what}.{name}.backends", *backends):
                yield words, None if key is None else (name, key)


def _values(path: str, old: Any, new: Any) -> Iterator[tuple[str, str]]:
    """Yield path and words of each difference; tables are looked into where both sides have one."""
    if old == new:
        return
    if path == TOKENS:
        yield from _tokens(old, new)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _values(f"{path}.{key}", old.get(key), new.get(key))
    elif old is None:
        yield path, f"{path} set to {_written(new)}"
    elif new is None:
        yield path, f"{path} no longer set"
    else:
        yield path, f"{path} {_written(old)} -> {_written(new)}"


def _tokens(old: Any, new: Any) -> Iterator[tuple[str, str]]:
    before, after = ({each["name"]: each for each in several} for several in (old, new))
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            yield TOKENS, f"{TOKENS} - {name}"
        elif name not in before:
            yield TOKENS, f"{TOKENS} + {name}"
        else:
            for path, words in _values(f"{TOKENS} {name}", before[name], after[name]):
                is_secret = path.endswith(".token")
                yield TOKENS, f"{TOKENS} {name}: another token" if is_secret else words


def _backends(path: str, old: Any, new: Any) -> Iterator[tuple[str, str | None]]:
    if old is None or new is None:
        if old is not None:
            yield f"{path} no longer set: the file says nothing of them", None
        elif new is not None:
            yield f"{path} set: {len(new)} of them", None
        return
    before = {_key(backend): backend for backend in old}
    after = {_key(backend): backend for backend in new}
    for key in [*before, *(key for key in after if key not in before)]:
        if key not in after:
            yield f"{path} - {key}", key
        elif key not in before:
            yield f"{path} + {key}", key
        else:
            for _, words in _values(f"{path} {key}", before[key], after[key]):
                yield words.replace(f"{path} {key}.", f"{path} {key}: "), key


def _key(backend: Mapping[str, Any]) -> str:
    return str(backend["name"] or backend["address"])


def _written(value: Any) -> str:
    text = unmarked(toml.value(value))
    return text if len(text) <= WRITTEN_MAX else f"{text[:WRITTEN_MAX]}..."


def security_changes(old: Config, new: Config) -> tuple[str, ...]:
    """
    Name the keys of `[group]` that wait for a restart because how members know each other changes.

    Another secret is taken up at once. None at all is not: the address that we listen on stays.
    """
    if old.group is None or new.group is None or old.group.security == new.group.security:
        return ()
    return ("group.tls", "group.secret")


def _needs_restart(path: str) -> bool:
    parts = path.split(".")
    for length in range(len(parts)):
        found = section_at(parts[:length]).model_fields.get(parts[length])
        # A table that comes or goes may need one, though most keys in it do not.
        if needs_restart(found) and (length or len(parts) == 1):
            return True
    return False
