"""The form of paths in which rules see them: no spelling gets around one."""

from __future__ import annotations

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lb.errors import ClientError
from lb.routing import normal_pattern, normalise


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/", "/a/"),
        ("/%61%2D%2e%5f%7E%41%39", "/a-._~A9"),
        ("/%2f%3a%c3%a9%20", "/%2F%3A%C3%A9%20"),  # not unreserved: only their letters change
        ("/%252e%252e/x", "/%252e%252e/x"),  # decoded once, never twice
        ("//", "/"),
        ("//a///b//", "/a/b/"),
        ("/a/./b", "/a/b"),
        ("/a/.", "/a/"),
        ("/./", "/"),
        ("/a/..", "/"),
        ("/a/../", "/"),
        ("/a/b/../c", "/a/c"),
        ("/a/b/..", "/a/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/.../b", "/a/.../b"),
        ("/.well-known/x", "/.well-known/x"),
        ("/a..", "/a.."),
        ("/a;v=1/b", "/a;v=1/b"),
        ("/a;v=1/../b", "/b"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a\\b", "/a\\b"),
    ],
)
def test_normal_forms(path: str, normal: str) -> None:
    assert normalise(path) == normal


@pytest.mark.parametrize(
    "path",
    [
        "",
        "*",
        "a/b",
        "/..",
        "/../a",
        "/a/../..",
        "/a/../../b",
        "/%2e%2e/a",
        "//..",
        "/a//../b",  # "/b" to one server, "/a/b" to another
        "/a%00b",
        "/%00",
        "/a/..%2fb",
        "/a/..%2Fb",
        "/a%2f..",
        "/a%2f../b",
        "/a%5c..%5cb",
        "/a/%2e%2e%5cb",
        "/a\\..\\b",
        "/..\\a",
        "/a/..;/b",
        "/a/..;x=1/b",
        "/a/.;/b",
        "/a/%2e%2e;/b",
        "/a/b;x%2f..",
        "/a/.%5C;",
        "/%",
        "/100%",
        "/%4",
        "/%zz",
        "/%%32%65",
    ],
)
def test_paths_that_are_no_ones(path: str) -> None:
    with pytest.raises(ClientError) as refused:
        normalise(path)

    assert refused.value.status == 400


PIECES = st.lists(
    st.sampled_from([*"//qb.%;\\", "..", "/../", "/./", "%2e", "%2F", "%5c", "%41", "%7e", "%c3"]),
    max_size=12,
).map(lambda pieces: "/" + "".join(pieces))


@settings(max_examples=500)
@given(path=PIECES)
def test_what_holds_for_all_normal_paths(path: str) -> None:
    try:
        normal = normalise(path)
    except ClientError:
        reject()
    assert normal.startswith("/")
    assert "//" not in normal
    assert not {".", ".."} & set(normal.split("/"))
    assert normalise(normal) == normal
    assert normalise(path.replace("q", "%71")) == normal


@settings(max_examples=300)
@given(folders=st.lists(st.sampled_from(["a", "b", ".", ".."]), max_size=10), folder=st.booleans())
def test_dot_segments_are_resolved_as_the_rfc_does(folders: list[str], folder: bool) -> None:
    """RFC 3986 5.2.4, but for what climbs: that is refused."""
    path = "/" + "/".join(folders) + ("/" if folder and folders else "")
    kept: list[str] = []
    for one in folders:
        if one == ".." and not kept:
            with pytest.raises(ClientError):
                normalise(path)
            return
        if one == "..":
            kept.pop()
        elif one != ".":
            kept.append(one)
    ends_open = bool(folders) and (folder or folders[-1] in (".", ".."))

    assert normalise(path) == "/" + "".join(f"{one}/" for one in kept)[: None if ends_open else -1]


def test_patterns() -> None:
    assert normal_pattern(None) is None
    assert normal_pattern("/") == "/"
    assert normal_pattern("//") == "/"
    assert normal_pattern("/v1//") == "/v1"
    assert normal_pattern("=/v1/") == "=/v1/"
    assert normal_pattern("~^/v1/") == "~^/v1/"
    with pytest.raises(ClientError):
        normal_pattern("/..")
