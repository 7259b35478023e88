"""
The kinds of values in the file: durations, sizes, shares, names, addresses.

Each kind reads what TOML gives it, says what is wrong in an operator's words, writes itself
back for JSON so that a `Config` survives the way to another process, and knows its JSON Schema.
Text that holds a whole number is a number: `weight = "${WEIGHT}"` has no other way.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lb.config.addresses import BadAddressError, backend_address, listen_address
from lb.errors import OperatorError
from lb.logformat import check_format

SHOWN_MAX = 60  # Characters of a wrong value that an error repeats.
NAME_MAX = 63
DURATION_MAX = 366 * 24 * 3600.0
SIZE_MAX = 1 << 50

NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]+)")
_BYTES = {
    "TiB": 1 << 40,
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "B": 1,
}
_OUTPUT_WORDS = {"stdout", "stderr", "off", "none", "syslog", "-"}
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)%")


def wrong(message: str, hint: str = "", at: tuple[str, ...] = ()) -> PydanticCustomError:
    """Make the error of a value, or of what is `at` in it; the loader adds file, line, caret."""
    return PydanticCustomError("accord", "{message}", {"message": message, "hint": hint, "at": at})


def shown(value: object) -> str:
    """Repeat a value as the file would write it, cut where it is long."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = value if len(value) <= SHOWN_MAX else value[:SHOWN_MAX] + "..."
            return f'"{text}"'
        case Mapping():
            return "a table"
        case list() | tuple():
            return "a list"
        case date() | time():
            return "a date or time"
        case _:
            return str(value)[:SHOWN_MAX]


def nearest(word: str, known: list[str]) -> str:
    """Hint at the name that was probably meant, or say nothing."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""


def is_number(value: object) -> bool:
    """Whether TOML had a number here; `true` is none, though Python thinks so."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Kind:
    """What one sort of value may be. Put into an `Annotated` it does the whole of its checking."""

    words: ClassVar[str] = "text"

    def describe(self) -> str:
        """Say in words what may stand here, for `lb config doc`."""
        return self.words

    def read(self, value: object) -> Any:
        """Turn what the file has into the value that we use, or raise `wrong`."""
        return self.text(value)

    def write(self, value: Any) -> Any:
        """Turn the value back into what `read` takes."""
        return value

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "string"}

    def text(self, value: object) -> str:
        """Take text and nothing else."""
        if not isinstance(value, str):
            hint = f'write "{shown(value)}"' if is_number(value) else ""
            raise wrong(f"{shown(value)} is not text", hint)
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(
                self.written, when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return self.schema()

    def written(self, value: Any) -> Any:
        """Write what may also be left out, as `... | None` allows."""
        return None if value is None else self.write(value)


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """Text that can go onto a line: not empty, no control characters, unless told so."""

    lines: bool = False
    empty: bool = False

    def read(self, value: object) -> str:
        """Take text."""
        text = self.text(value)
        if not text and not self.empty:
            raise wrong("this cannot be empty", "leave it out")
        if not self.lines and not text.isprintable():
            raise wrong("this text holds control characters")
        return text


@dataclass(frozen=True, slots=True)
class Output(Kind):
    """Where lines go: one of a few words, or a path."""

    options: tuple[str, ...]

    def describe(self) -> str:
        """Say in words what may stand here."""
        return ", ".join(f'"{option}"' for option in self.options) + " or a path"

    def read(self, value: object) -> str:
        """Take a word or a path; a word that is meant for another key is no path."""
        text = Text().read(value)
        if text in _OUTPUT_WORDS and text not in self.options:
            raise wrong(
                f"{shown(text)} is not one of {', '.join(self.options)}",
                f'write "./{text}" for a file of that name',
            )
        return text


@dataclass(frozen=True, slots=True)
class LogFormat(Kind):
    """What a line of the access log looks like."""

    words = '"json", "combined" or a template like "{client} {method} {path} {status}"'

    def read(self, value: object) -> str:
        """Take a format that lines can be made of."""
        text = self.text(value)
        try:
            check_format(text)
        except OperatorError as error:
            raise wrong(error.message, error.hint) from None
        return text


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """True or false."""

    words = "true or false"

    def read(self, value: object) -> bool:
        """Take a boolean, or its name, which is what `${VAR}` gives."""
        if isinstance(value, bool):
            return value
        if value in {"true", "false"}:
            return value == "true"
        raise wrong(f"{shown(value)} is not true or false")

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    """A whole number between two bounds."""

    minimum: int
    maximum: int

    def describe(self) -> str:
        """Say in words what may stand here."""
        return f"whole number, {self.minimum} to {self.maximum}"

    def read(self, value: object) -> int:
        """Take a whole number within the bounds."""
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value[:20])
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(f"{shown(value)} is not a whole number")
        if not self.minimum <= value <= self.maximum:
            raise wrong(f"{value} is out of range", f"{self.minimum} to {self.maximum}")
        return value

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Workers(Kind):
    """How many worker processes: a number, or `auto` for one a core."""

    maximum: int
    words = 'whole number or "auto"'

    def read(self, value: object) -> int | str:
        """Take `auto` or a number of at least one."""
        if value == "auto":
            return "auto"
        if isinstance(value, str) and not value.isdigit():
            raise wrong(f'{shown(value)} is neither "auto" nor a number')
        return Whole(1, self.maximum).read(value)

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"anyOf": [{"const": "auto"}, Whole(1, self.maximum).schema()]}


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words. `also` maps a second name to its first."""

    options: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()

    def describe(self) -> str:
        """Say in words what may stand here."""
        return "one of " + ", ".join(f'"{option}"' for option in self.options)

    def read(self, value: object) -> str:
        """Take one of the words."""
        text = dict(self.also).get(self.text(value), self.text(value))
        if text not in self.options:
            hint = nearest(text, [*self.options, *dict(self.also)])
            raise wrong(
                f"{shown(text)} is not one of {', '.join(self.options)}", hint or "choose one"
            )
        return text

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"enum": [*self.options, *dict(self.also)]}


@dataclass(frozen=True, slots=True)
class Duration(Kind):
    """Seconds, written with a unit: `250ms`, `2s`, `1m30s`, `1h`."""

    zero: bool = True
    words = 'duration, like "250ms", "2s", "5m", "1h"'

    def read(self, value: object) -> float:
        """Take text with units; add up what it says."""
        if is_number(value):
            raise wrong(f"{shown(value)} has no unit", f'write "{shown(value)}s"')
        text = self.text(value)
        parts = _DURATION_PART.findall(text)
        if text != "0" and (not text or "".join(map("".join, parts)) != text):
            hint = f'write "{text}s"' if re.fullmatch(r"\d+(\.\d+)?", text) else 'like "2s"'
            raise wrong(f"{shown(text)} is not a duration", hint)
        seconds = float(sum(Decimal(number[:40]) * _SECONDS[unit] for number, unit in parts))
        if seconds > DURATION_MAX:
            raise wrong(f"{shown(text)} is too long", "at most 366d")
        if seconds == 0 and not self.zero:
            raise wrong("this cannot be zero", 'like "2s"')
        return seconds

    def write(self, value: float) -> str:
        """Write it in the largest unit that leaves no fraction."""
        exact = Decimal(repr(value))
        for unit, least in (("d", 2), ("h", 1), ("m", 2), ("s", 1), ("ms", 1)):
            count = exact / _SECONDS[unit]
            if count >= least and count == count.to_integral_value():
                return f"{int(count)}{unit}"
        return f"{exact:f}s" if value else "0s"

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "string", "pattern": r"^(0|(\d+(\.\d+)?(ms|s|m|h|d))+)$"}


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """Bytes, written with a unit: `64KiB`, `10MiB`."""

    minimum: int = 0
    maximum: int = SIZE_MAX
    words = 'size, like "512B", "64KiB", "10MiB"'

    def read(self, value: object) -> int:
        """Take text with a unit."""
        if is_number(value):
            hint = self.write(value) if isinstance(value, int) and value > 0 else f"{value}B"
            raise wrong(f"{shown(value)} has no unit", f'write "{hint}"')
        text = self.text(value)
        found = _SIZE.fullmatch(text)
        if text != "0" and (found is None or found[2] not in _BYTES):
            raise wrong(f"{shown(text)} is not a size", self._guess(text))
        exact = Decimal(found[1][:40]) * _BYTES[found[2]] if found else Decimal(0)
        if exact != exact.to_integral_value():
            raise wrong(f"{shown(text)} is not a whole number of bytes")
        if not self.minimum <= exact <= self.maximum:
            raise wrong(
                f"{shown(text)} is out of range",
                f"{self.write(self.minimum)} to {self.write(self.maximum)}",
            )
        return int(exact)

    def write(self, value: int) -> str:
        """Write it in the largest binary unit that leaves no fraction."""
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if value and value % _BYTES[unit] == 0:
                return f"{value // _BYTES[unit]}{unit}"
        return f"{value}B"

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "string", "pattern": r"^(0|\d+(\.\d+)?([KMGT]i?)?B)$"}

    def _guess(self, text: str) -> str:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)i?b?", text, re.IGNORECASE)
        if found is None:
            return 'like "64KiB"'
        return f'write "{found[1]}{found[2].upper()}{"iB" if found[2] else "B"}"'


@dataclass(frozen=True, slots=True)
class ByteRate(Kind):
    """Bytes a second, written with both units: `10KiB/s`; `0` for any."""

    words = 'bytes a second, like "1KiB/s"'

    def read(self, value: object) -> int:
        """Take text with a size and `/s`."""
        if is_number(value):
            hint = 'write "0"' if value == 0 else f'write "{value}B/s"'
            raise wrong(f"{shown(value)} has no unit", hint)
        text = self.text(value)
        size, slash, unit = text.partition("/")
        if text != "0" and (not slash or unit != "s"):
            raise wrong(f"{shown(text)} is not bytes a second", 'like "1KiB/s"')
        return Size().read(size)

    def write(self, value: int) -> str:
        """Write it as a size a second."""
        return f"{Size().write(value)}/s" if value else "0"

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "string", "pattern": r"^(0|\d+(\.\d+)?([KMGT]i?)?B/s)$"}


@dataclass(frozen=True, slots=True)
class Share(Kind):
    """A share of one, written in percent: `20%`."""

    words = 'share, like "20%"'

    def read(self, value: object) -> float:
        """Take text that ends in a percent sign."""
        if is_number(value):
            percent = value * 100 if isinstance(value, float) and 0 < value < 1 else value
            raise wrong(f"{shown(value)} has no unit", f'write "{percent:g}%"')
        text = self.text(value)
        found = _PERCENT.fullmatch(text)
        if found is None:
            raise wrong(f"{shown(text)} is not a share", 'like "20%"')
        share = Decimal(found[1]) / 100
        if share > 1:
            raise wrong(f"{shown(text)} is out of range", '"0%" to "100%"')
        return float(share)

    def write(self, value: float) -> str:
        """Write it in percent, with no more digits than were given."""
        return f"{(Decimal(repr(value)) * 100).normalize():f}%"

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "string", "pattern": r"^\d{1,3}(\.\d+)?%$"}


@dataclass(frozen=True, slots=True)
class Name(Kind):
    """A name in our sense: of a node, listener, route, upstream or backend."""

    words = "name"

    def read(self, value: object) -> str:
        """Take letters, digits, `_`, `-` and `.`; not what a path would resolve."""
        text = self.text(value)
        if not NAME.fullmatch(text) or text in {".", ".."}:
            raise wrong(
                f"{shown(text)} is not a name",
                f"letters, digits, _, - and . make names of at most {NAME_MAX}",
            )
        return text

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"type": "string", "pattern": f"^{NAME.pattern}$"}


@dataclass(frozen=True, slots=True)
class ListenAddress(Kind):
    """Where we accept."""

    words = 'address, like "0.0.0.0:8080", ":8080", "[::1]:80", "unix:/run/app.sock"'

    def read(self, value: object) -> str:
        """Take an address; the text returned is the same for the same address."""
        try:
            return str(listen_address(self._text_or_port(value)))
        except BadAddressError as error:
            raise wrong(str(error), error.hint) from None

    def _text_or_port(self, value: object) -> str:
        # A port alone is a likely slip: let the address' own words say what to write.
        return str(value) if is_number(value) else self.text(value)


@dataclass(frozen=True, slots=True)
class BackendAddress(Kind):
    """Where a backend is."""

    words = 'address, like "10.0.0.4:80", "app.example:80", "unix:/run/app.sock"'

    def read(self, value: object) -> str:
        """Take an address; the text returned is the same for the same address."""
        try:
            return str(backend_address(self.text(value)))
        except BadAddressError as error:
            raise wrong(str(error), error.hint) from None


@dataclass(frozen=True, slots=True)
class DnsServer(Kind):
    """A server that is asked for names; not by a name, which somebody would have to know."""

    words = 'address, like "10.0.0.2" or "127.0.0.1:5353"'

    def read(self, value: object) -> str:
        """Take an IP address, with a port or without."""
        text = self.text(value)
        try:
            return str(ipaddress.ip_address(text.strip("[]")))
        except ValueError:
            pass  # Then it should have a port.
        try:
            address = listen_address(text)
        except BadAddressError as error:
            raise wrong(str(error), error.hint) from None
        if not address.host:
            raise wrong(f"{shown(text)} names no server", 'write "127.0.0.1:53"')
        return str(address)


class OrOne:
    """Put beside a list: a single value is accepted where several could stand."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(as_list, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        several = handler(core)
        return {"anyOf": [several["items"], several]}


def as_list(value: object) -> object:
    """Make a list of one of anything that is none."""
    return value if value is None or isinstance(value, list | tuple) else [value]
