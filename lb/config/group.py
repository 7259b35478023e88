"""The shape of `[group]`: who the others are, and how they know each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lb.config.addresses import BadAddressError, backend_address, listen_address
from lb.config.kinds import Kind, ListenAddress, Name, OrOne, Text, Whole, is_number, shown, wrong
from lb.config.secrets import SharedSecrets
from lb.config.section import Section, restart

VOTERS_MAX = 9


@dataclass(frozen=True, slots=True)
class GroupListen(ListenAddress):
    """Where other members reach us: TCP, as they are on other machines."""

    words = 'address, like "10.0.0.1:9901", ":9901"'

    def read(self, value: object) -> str:
        """Take an address with a port."""
        text = ListenAddress.read(self, value)
        if listen_address(text).path:
            raise wrong("members talk over TCP", 'like "127.0.0.1:9901"')
        return text


@dataclass(frozen=True, slots=True)
class MemberAddress(Kind):
    """Where a member is, as others reach it."""

    words = 'address, like "10.0.0.2:9901", "lb-2.example:9901"'

    def read(self, value: object) -> str:
        """Take a host and a port."""
        if is_number(value):
            raise wrong(f"{shown(value)} is no address", 'like "10.0.0.2:9901"')
        try:
            address = backend_address(self.text(value))
        except BadAddressError as error:
            hint = error.hint.replace(":80", ":9901")
            raise wrong(str(error).replace("backends are", "members are"), hint) from None
        if address.path or address.secure:
            raise wrong(f"{shown(value)} is no member's address", 'like "10.0.0.2:9901"')
        return str(address)


@dataclass(frozen=True, slots=True)
class Voter(Kind):
    """Whether this instance votes."""

    words = 'true, false or "auto"'

    def read(self, value: object) -> bool | str:
        """Take a boolean, its name, or `auto`."""
        if isinstance(value, bool) or value == "auto":
            return value
        if value in ("true", "false"):
            return value == "true"
        raise wrong(f'{shown(value)} is none of true, false and "auto"')

    def schema(self) -> dict[str, Any]:
        """Describe it in JSON Schema."""
        return {"enum": [True, False, "auto"]}


class GroupTls(Section):
    """By which certificates members know each other."""

    noun = "a group's tls"

    cert: Annotated[str, Text()] = Field(
        description="A PEM file: this member's certificate, which carries its name.",
        examples=["a.pem"],
    )
    key: Annotated[str, Text()] = Field(
        description="A PEM file with its private key, without a passphrase.", examples=["a.key"]
    )
    ca: Annotated[str, Text()] = Field(
        description="A PEM file with the group's own authority; no other is believed.",
        examples=["group-ca.pem"],
    )


class Group(Section):
    """The instances that agree on backends. Left out: a group of one."""

    noun = "[group]"

    listen: Annotated[str, GroupListen()] = restart(
        ..., "Where other members reach us.", examples=["10.0.0.1:9901"]
    )
    members: dict[Annotated[str, Name()], Annotated[str, MemberAddress()]] = restart(
        {},
        "The first members, by name, as others reach them.",
        examples=[{"a": "10.0.0.1:9901", "b": "10.0.0.2:9901", "c": "10.0.0.3:9901"}],
    )
    join: Annotated[list[Annotated[str, MemberAddress()]], OrOne()] = restart(
        [],
        "Instead of members, or with them: instances of a running group to ask.",
        examples=[["10.0.0.2:9901"]],
    )
    voter: Annotated[Literal["auto"] | bool, Voter()] = restart(
        "auto",
        'Whether this instance votes; "auto": as long as there are fewer voters than `voters`.',
        examples=[False],
    )
    voters: Annotated[int, Whole(1, VOTERS_MAX)] = restart(
        3, "How many voters there should be: 3, or 5 where two may fail at once."
    )
    tls: GroupTls | None = Field(
        default=None,
        description="Members know each other by certificates. Read again when the files change.",
        examples=[{"cert": "a.pem", "key": "a.key", "ca": "group-ca.pem"}],
    )
    secret: Annotated[tuple[str, ...], SharedSecrets()] = Field(
        default=(),
        description="Members know each other by this; nothing is encrypted. Two lines while it"
        " is changed: the first is sent, both are accepted.",
        repr=False,
    )
    secret_file: Annotated[str, Text()] | None = Field(
        default=None,
        description="A file that holds the secret; read again at a reload.",
        examples=["group.secret"],
    )

    @property
    def security(self) -> Literal["tls", "secret", "none"]:
        """How members know each other."""
        if self.tls is not None:
            return "tls"
        return "secret" if self.secret or self.secret_file else "none"

    @model_validator(mode="after")
    def _others_are_known(self) -> Group:
        if not self.members and not self.join:
            raise wrong(
                "a group has neither members nor join: there is nobody to agree with",
                'add members = { a = "10.0.0.1:9901", b = "10.0.0.2:9901" }',
            )
        seen: dict[str, str] = {}
        for name, address in self.members.items():
            if address in seen:
                raise wrong(
                    f"{shown(address)} is {seen[address]}'s already",
                    "each member has an address of its own",
                    at=("members", name),
                )
            seen[address] = name
        return self
