"""What we say of keys, and the files that we write ourselves."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.kit import SMALLEST, Folder
from lb.config import toml
from lb.config.doc import describe, json_schema, keys, show
from lb.config.sample import sample, smallest
from lb.errors import OperatorError

FULL = (
    SMALLEST
    + """
    [node]
    name = "a"
    workers = 2
    data_dir = "/var/lib/lb"
    [admin]
    hosts = ["lb.example"]
    [access_log]
    format = "{client} \\"q\\" \\\\"
    [upstream.other]
    health = { path = "/h", body = "a\\nb" }
    backends = []
    [upstream."dotted.name"]
    backends = [{ address = "a:1", name = "n", weight = 0, backup = true }]
    [route.a]
    header = { x-y = "$${x}" }
    upstream = { app = "99.5%", other = "0.5%" }
    [route.b]
    path = '~^/x/\\d+$'
    respond = { status = 308, location = "https://a/" }
    """
)


@pytest.mark.parametrize("key", keys())
def test_every_key_is_described(key: str) -> None:
    text = describe(key)

    assert key.rpartition(".")[2] in text.split("\n")[0]
    assert len(text.split("\n")[1]) > 10
    assert "None" not in text
    assert "type:" in text or "keys:" in text


def test_a_description() -> None:
    assert describe("listener.timeouts.idle") == (
        "listener.timeouts.idle\n"
        "  How long a connection is kept open between requests.\n"
        '  type: duration, like "250ms", "2s", "5m", "1h"\n'
        '  default: "60s"'
    )
    assert describe("listener.web.timeouts.idle") == describe("listener.timeouts.idle")
    assert describe("listener.web.timeouts") == describe("listener.timeouts")
    assert "Not yet supported" in describe("upstream.api.backends.ttl")
    assert "A change acts after a restart." in describe("node.workers")
    assert "listener" in describe("")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("listner", 'did you mean "listener"?'),
        ("idle", "listener.timeouts.idle"),
        ("pth", "did you mean route.path or upstream.health.path?"),
        ("listener.timeouts.idle.x", "lb config doc"),
        ("zzz", "lb config doc"),
    ],
)
def test_a_key_that_is_none(key: str, hint: str) -> None:
    with pytest.raises(OperatorError) as raised:
        describe(key)
    assert hint in raised.value.hint


def test_what_is_shown_can_be_loaded(folder: Folder) -> None:
    config = folder.load(FULL).config

    assert folder.load(show(config)).config == config
    assert 'address = ["0.0.0.0:8080"]' in show(config)


def test_the_json_schema() -> None:
    schema = json_schema()
    listener = schema["$defs"]["Listener"]

    assert listener["additionalProperties"] is False
    assert listener["required"] == ["address"]
    address = listener["properties"]["address"]["anyOf"]
    assert [each["type"] for each in address] == ["string", "array"]
    assert schema["$defs"]["Upstream"]["properties"]["panic"]["default"] == "30%"
    assert "include" in schema["properties"]


# --- The sample -------------------------------------------------------------------------------


def test_the_sample_loads(folder: Folder) -> None:
    assert folder.load(sample()).warnings == ()


def test_the_sample_tells_the_truth(folder: Folder) -> None:
    """Each line that is commented out is right, and shows the default where it says one."""
    text = re.sub(r"^# (?=\w+ = |\[)", "", sample(), flags=re.MULTILINE)
    text = re.sub(r"^  # (?=\{)", "  ", text, flags=re.MULTILINE)
    text = text.replace("/var/lib/lb", "lb-data")
    (folder.path / "plugins").mkdir(mode=0o700)
    config = folder.load(text).config
    plain = folder.load(sample()).config

    assert config.route.keys() == {"api", "old"}
    assert config.listener["web"].limits == plain.listener["web"].limits
    assert config.listener["web"].timeouts == plain.listener["web"].timeouts
    app, default = config.upstream["app"], plain.upstream["app"]
    assert app.backends is not None
    assert len(app.backends) == 4
    assert app.model_copy(update={"health": None, "backends": None}) == default.model_copy(
        update={"backends": None}
    )
    assert config.log == plain.log
    assert config.node.model_copy(update={"name": ""}) == plain.node.model_copy(update={"name": ""})


def test_the_sample_has_every_key() -> None:
    text = sample()
    for key in keys():
        assert re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", text), key


def test_the_sample_is_found_in_a_wheel(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("# from the wheel", "lb/_conf/lb.toml")
    missing = folder.path / "missing"
    monkeypatch.setattr(
        "lb.config.sample._PLACES", (folder.path / "lb" / "_conf" / "lb.toml", missing)
    )
    assert sample() == "# from the wheel"
    monkeypatch.setattr("lb.config.sample._PLACES", (missing,))
    with pytest.raises(OperatorError, match="is missing"):
        sample()


def test_the_smallest(folder: Folder) -> None:
    config = folder.load(smallest([":8080"], ["a:1", "b:2"], "/tmp/x")).config

    assert config.node.data_dir == "/tmp/x"
    assert config.listener["web"].address == [":8080"]
    assert len(config.upstream["app"].backends or ()) == 2


# --- Writing TOML -----------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
VALUES = st.recursive(
    st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, st.dictionaries(TEXT, VALUES, max_size=4), max_size=4))
def test_what_is_written_is_read_back(tree: dict[str, Any]) -> None:
    read = tomllib.loads(toml.write(tree))

    assert _unescaped(read) == {key: table for key, table in tree.items() if table}


def _unescaped(tree: Any) -> Any:
    match tree:
        case dict():
            return {_unescaped(key): _unescaped(each) for key, each in tree.items()}
        case list():
            return [_unescaped(each) for each in tree]
        case str():
            return tree.replace("$${", "${")
        case _:
            return tree
