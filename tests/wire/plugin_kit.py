"""A proxy whose requests pass plugins that a test writes down."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lb.model import Endpoint, PluginCode, PluginUse, Route, Upstream
from lb.plugin_code import digest_of
from wire.kit import Origin, Proxy, until

HEAD = """
import asyncio
from lb.plugin import Plugin, reply

SEEN = []


class One(Plugin[None]):
    name = "{name}"
"""


def source_of(name: str, hooks: str) -> bytes:
    """Return a plugin with these hooks, the text of the methods."""
    return (HEAD.format(name=name) + textwrap.indent(textwrap.dedent(hooks), "    ")).encode()


def install(proxy: Proxy, plugins: dict[str, str], on_error: str = "closed") -> None:
    """Have all requests pass these plugins from now on, in this order."""
    sources = {name: source_of(name, hooks) for name, hooks in plugins.items()}
    plans = replace(
        proxy._plans,
        plugins=tuple(PluginUse(name, "plugins", on_error, "{}") for name in plugins),
        code=tuple(
            PluginCode(name, digest_of(source), f"{name}.py", name)
            for name, source in sources.items()
        ),
    )
    by_digest = {digest_of(source): source for source in sources.values()}
    proxy.call(
        lambda: proxy.switchboard.install(plans, None, None, None, None, by_digest),
    )


def plugin(proxy: Proxy, name: str = "one") -> Any:
    """Return the plugin that serves now."""
    lives = proxy.switchboard.plugins._lives.values()
    return next(live.plugin for live in lives if live.name == name)


@contextmanager
def hooked(
    origins: Iterable[Origin | Endpoint],
    plugins: dict[str, str],
    on_error: str = "closed",
    upstream: Upstream | None = None,
    routes: Iterable[Route] = (),
) -> Iterator[Proxy]:
    """Open a proxy with plugins; at the end nothing of theirs or ours may be left."""
    with Proxy(list(origins), upstream=upstream, routes=routes) as proxy:
        install(proxy, plugins, on_error)
        yield proxy
        until(lambda: proxy.running == 0, "no exchange left")
        known = proxy.switchboard.plugins
        chains = [chain for chain in known._chains.values() if chain is not None]
        assert proxy.call(lambda: sum(chain.running for chain in chains)) == 0
        until(lambda: proxy.call(lambda: len(known._retired)) == 0, "no chain left")
