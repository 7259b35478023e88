"""The shape of `[admin]`: where operators come in, and what proves who they are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from lb.config.kinds import Choice, ListenAddress, Name, OrOne, Text, shown, wrong
from lb.config.requests import HostPattern
from lb.config.secrets import TokenText
from lb.config.section import Section, restart

ROLES = ("read", "register", "write", "admin")
TOKENS_MAX = 1000


class Token(Section):
    """What somebody shows to be let in."""

    noun = "a token"

    name: Annotated[str, Name()] = Field(
        description="What it is called where writes are shown and logged.", examples=["ops"]
    )
    token: Annotated[str, TokenText()] = Field(
        default="",
        description='The token, or "sha256:" and its digest: nothing else is kept of it.',
        repr=False,
    )
    token_file: Annotated[str, Text()] | None = Field(
        default=None,
        description="A file that holds the token; read again at a reload.",
        examples=["ops.token"],
    )
    role: Annotated[str, Choice(ROLES)] = Field(
        description="read; register: leased backends of its upstreams; write: backends and"
        " locks; admin: everything.",
        examples=["admin"],
    )
    upstreams: Annotated[list[Annotated[str, Name()]], OrOne()] = Field(
        default=[], description="Of a register token: where it may register.", examples=[["app"]]
    )

    @model_validator(mode="after")
    def _upstreams_fit(self) -> Token:
        if self.role == "register" and not self.upstreams:
            raise wrong(
                "a register token that names no upstreams may do nothing",
                'add upstreams = ["app"]',
                at=("role",),
            )
        if self.role != "register" and self.upstreams:
            raise wrong(
                f"a {self.role} token is for all upstreams",
                'leave them out, or write role = "register"',
                at=("upstreams",),
            )
        return self


class AdminTls(Section):
    """The admin address' certificate."""

    noun = "[admin] tls"

    cert: Annotated[str, Text()] = Field(
        description="A PEM file: the certificate, then those that lead from it to its authority.",
        examples=["a.pem"],
    )
    key: Annotated[str, Text()] = Field(
        description="A PEM file with its private key, without a passphrase.", examples=["a.key"]
    )
    client_ca: Annotated[str, Text()] | None = Field(
        default=None,
        description="A PEM file with the authorities that clients' certificates must come from;"
        " without it none is asked for.",
        examples=["ops-ca.pem"],
    )


class Admin(Section):
    """Where operators, the command line and the dashboard talk to this instance."""

    noun = "[admin]"

    address: Annotated[str, ListenAddress()] = restart(
        "127.0.0.1:9900",
        "Loopback, or a unix socket (mode 0660); any other address needs TLS and tokens.",
        examples=["unix:/run/lb/admin.sock"],
    )
    tokens: Annotated[list[Token], OrOne()] = Field(
        default=[],
        description="Who may do what. Without any, loopback and a unix socket may do everything;"
        " with them, TCP always needs one.",
        examples=[[{"name": "ops", "token_file": "ops.token", "role": "admin"}]],
    )
    tls: AdminTls | None = restart(
        None,
        "Speak TLS. The certificate is read again when its files change.",
        examples=[{"cert": "a.pem", "key": "a.key", "client_ca": "ops-ca.pem"}],
    )
    hosts: Annotated[list[Annotated[str, HostPattern()]], OrOne()] = Field(
        default=[],
        description="Names by which a browser may call us.",
        examples=[["lb.example.com"]],
    )
    probe: Annotated[str, ListenAddress()] | None = restart(
        None,
        "A second, plain address that knows only /livez, /readyz and /metrics.",
        examples=["0.0.0.0:9902"],
    )

    @field_validator("tokens", mode="after")
    @classmethod
    def _names_differ(cls, tokens: list[Token]) -> list[Token]:
        if len(tokens) > TOKENS_MAX:
            raise wrong(f"these are {len(tokens)} tokens", f"at most {TOKENS_MAX}")
        seen: set[str] = set()
        for index, token in enumerate(tokens):
            if token.name in seen:
                raise wrong(f"{shown(token.name)} is here twice", at=(str(index), "name"))
            seen.add(token.name)
        return tokens
