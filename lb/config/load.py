"""From a file's name to a `Config`, or to everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from lb.config.certificates import check_certificates
from lb.config.checks import warnings
from lb.config.files import Files
from lb.config.find import find_config
from lb.config.judge import errors_of, judge
from lb.config.plugins import judge_plugins
from lb.config.problem import ConfigErrors, Problem
from lb.config.schema import Admin, Config, Group, Listener, Section
from lb.config.secret_files import read_secrets

S = TypeVar("S", bound=Section)

__all__ = ["ConfigErrors", "Loaded", "Problem", "find_config", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    A configuration that can be used.

    `files` are all that were read, absolute; `digest` is over their contents; `warnings` say
    what is allowed, yet probably not meant.
    """

    config: Config
    files: tuple[str, ...]
    digest: str
    warnings: tuple[str, ...] = ()


def load(path: str, environ: Mapping[str, str], patience: float = 0.0) -> Loaded:
    """
    Read, judge and complete a configuration. Raises `ConfigErrors` with all that is wrong.

    A certificate and a key that do not match are looked at again for `patience` seconds:
    somebody may be replacing them just now.
    """
    files = Files(environ)
    files.read(path)
    if not files.tree and files.problems:
        raise ConfigErrors(files.problems)
    config = _complete(judge(files), os.path.dirname(os.path.abspath(path)), environ)
    secrets = read_secrets(config, files.tree)
    findings, more = check_certificates(secrets.config, files.tree, patience)
    plugins = judge_plugins(secrets.config, files.tree)
    files.problems += plugins.problems
    if findings or secrets.findings or plugins.findings or files.problems:
        raise errors_of(files, [*secrets.findings, *findings, *plugins.findings])
    for source in plugins.sources:
        files.add_to_digest(source)
    told = (*warnings(config), *secrets.warnings, *more, *plugins.warnings)
    return Loaded(plugins.config, (*files.names, *plugins.files), files.digest, told)


def _complete(config: Config, folder: str, environ: Mapping[str, str]) -> Config:
    """Settle what depends on where the file lies and on how we were started."""
    node, data_dir = config.node, config.node.data_dir
    if "data_dir" not in node.model_fields_set:
        # systemd may name several, parted by colons; the first is the one meant for us.
        data_dir = environ.get("STATE_DIRECTORY", "").split(":", maxsplit=1)[0] or data_dir
    return config.model_copy(
        update={
            "listener": {
                name: _place_listener(listener, folder)
                for name, listener in config.listener.items()
            },
            "upstream": {
                name: upstream.model_copy(
                    update={"tls": _place(upstream.tls, folder, "ca", "cert", "key")}
                )
                for name, upstream in config.upstream.items()
            },
            "node": node.model_copy(update={"data_dir": os.path.join(folder, data_dir)}),
            "admin": _place_admin(config.admin, folder),
            "plugins": config.plugins.model_copy(
                update={"folders": [os.path.join(folder, each) for each in config.plugins.folders]}
            ),
            "group": config.group and _place_group(config.group, folder),
            "log": config.log.model_copy(
                update={"output": _beside(config.log.output, folder, {"stderr", "stdout"})}
            ),
            "access_log": config.access_log.model_copy(
                update={"output": _beside(config.access_log.output, folder, {"stdout", "off"})}
            ),
        }
    )


def _place_listener(listener: Listener, folder: str) -> Listener:
    pairs = [_place(pair, folder, "cert", "key") for pair in listener.tls]
    return _place(listener.model_copy(update={"tls": pairs}), folder, "client_ca")


def _place_admin(admin: Admin, folder: str) -> Admin:
    tokens = [_place(token, folder, "token_file") for token in admin.tokens]
    tls = admin.tls and _place(admin.tls, folder, "cert", "key", "client_ca")
    return admin.model_copy(update={"tokens": tokens, "tls": tls})


def _place_group(group: Group, folder: str) -> Group:
    tls = group.tls and _place(group.tls, folder, "cert", "key", "ca")
    return _place(group.model_copy(update={"tls": tls}), folder, "secret_file")


def _place(section: S, folder: str, *keys: str) -> S:
    """Make file names absolute; what is not there stays so."""
    names = {key: getattr(section, key) for key in keys}
    placed = {key: os.path.join(folder, name) for key, name in names.items() if name}
    return section.model_copy(update=placed)


def _beside(output: str, folder: str, words: set[str]) -> str:
    return output if output in words else os.path.join(folder, output)
