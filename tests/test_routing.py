"""Which route a request falls under."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.errors import ClientError
from lb.model import Listener, Respond, Route
from lb.routing import (
    NOT_FOUND,
    Kind,
    Match,
    Router,
    conflicts,
    pick_share,
)

LISTENERS = (
    Listener("http", (":80",), upstream="app"),
    Listener("inner", (":81",), ready_path="/-/ready"),
)
UPSTREAMS = ("app", "api", "static", "canary")


def router(*routes: Route) -> Router:
    return Router(routes, LISTENERS, UPSTREAMS)


def ask(
    routes: Router,
    path: str = "/",
    host: str = "example.com",
    method: str = "GET",
    listener: str = "http",
    **headers: str | list[str],
) -> Match:
    found = {
        name.replace("_", "-"): [value] if isinstance(value, str) else value
        for name, value in headers.items()
    }
    return routes.route(listener, host, path, method, lambda name: found.get(name, []))


def name(match: Match) -> str:
    return match.route.name if match.route else f"({match.kind.value})"


def to(name: str, **conditions: object) -> Route:
    return Route(name, upstream="api", **conditions)  # type: ignore[arg-type]


# --- What a route takes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "takes", "leaves"),
    [
        ("/", ["/", "/a", "/a/b"], []),
        ("/v1", ["/v1", "/v1/", "/v1/x"], ["/v10", "/v", "/", "/x/v1", "/V1"]),
        ("/v1/", ["/v1", "/v1/", "/v1/x"], ["/v10"]),  # the same
        ("=/v1", ["/v1"], ["/v1/", "/v1/x"]),
        ("=/", ["/"], ["/a"]),
        ("=/v1/", ["/v1/"], ["/v1"]),
        (r"~^/x/\d+$", ["/x/1", "/x/42"], ["/x/", "/x/a", "/x/1/b", "/y/x/1"]),
        ("~b", ["/b", "/ab/c"], ["/a"]),
        ("/caf%c3%a9", ["/caf%C3%A9/x"], ["/caf"]),
        ("/%7Eme", ["/~me"], ["/me"]),
        (None, ["/", "/a"], []),
    ],
)
def test_paths(pattern: str | None, takes: list[str], leaves: list[str]) -> None:
    routes = router(to("r", path=pattern))

    assert [path for path in takes + leaves if name(ask(routes, path)) == "r"] == takes


@pytest.mark.parametrize(
    ("pattern", "takes", "leaves"),
    [
        ("a.com", ["a.com", "a.com."], ["b.com", "x.a.com", "", "xa.com"]),
        ("*.a.com", ["x.a.com", "x.y.a.com", "x.a.com."], ["a.com", ".a.com", "xa.com", ""]),
        ("[::1]", ["[::1]"], ["::1", "[::2]"]),
    ],
)
def test_hosts(pattern: str, takes: list[str], leaves: list[str]) -> None:
    routes = router(to("r", hosts=(pattern,)))

    assert [host for host in takes + leaves if name(ask(routes, host=host)) == "r"] == takes


def test_an_endless_host_is_no_work() -> None:
    routes = router(to("r", hosts=("*.com",)))

    assert name(ask(routes, host="a." * 4000 + "com")) == "(forward)"


def test_headers_are_matched_by_any_of_their_fields() -> None:
    routes = router(to("r", headers=(("x-env", "canary"), ("x-team", "b"))))

    assert name(ask(routes, x_env="canary", x_team="b")) == "r"
    assert name(ask(routes, x_env=["prod", "canary"], x_team="b")) == "r"
    assert name(ask(routes, x_env="Canary", x_team="b")) == "(forward)"
    assert name(ask(routes, x_env="canary")) == "(forward)"
    assert name(ask(routes)) == "(forward)"


def test_routes_are_for_their_listeners() -> None:
    routes = router(to("r", listeners=("inner",)), to("s", listeners=("http", "inner"), path="/s"))

    assert name(ask(routes, listener="inner")) == "r"
    assert name(ask(routes)) == "(forward)"
    assert name(ask(routes, "/s")) == name(ask(routes, "/s", listener="inner")) == "s"
    assert ask(routes, listener="gone") is NOT_FOUND


def test_kinds() -> None:
    gone = Route("gone", path="/gone", respond=Respond(410, body="gone\n"))
    split = Route("split", path="/split", split=(("api", 0.9), ("canary", 0.1)))
    routes = router(gone, split, to("api", path="/api"))

    assert ask(routes, "/gone") == Match(Kind.RESPOND, gone)
    assert ask(routes, "/split") == Match(Kind.FORWARD, split)
    assert ask(routes, "/api").upstream == "api"


# --- The most specific ------------------------------------------------------------------------

# Each list from the most to the least specific; all match the request of the test.
RANKED = [
    [
        to("exact", hosts=("a.b.com",)),
        to("longer", hosts=("*.b.com",), path="/x"),
        to("shorter", hosts=("*.com",), path="=/x/1"),
        to("none", path="=/x/1", methods=("GET",)),
    ],
    [
        to("exact", path="=/x/1"),
        to("long", path="/x/1"),
        to("short", path="/x/", methods=("GET",)),
        to("root", path="/", methods=("GET",)),
        to("long-re", path=r"~^/x/\d$", methods=("GET",)),
        to("re", path="~1", methods=("GET",)),
        to("none", methods=("GET",), headers=(("k", "v"),)),
    ],
    [
        to("three", methods=("GET",), headers=(("k", "v"), ("k2", "v2"))),
        to("two", headers=(("k", "v"), ("k2", "v2"))),
        to("one-a", methods=("GET",)),
        to("one-b", headers=(("k", "v"),)),
        to("z-none"),
    ],
]


@pytest.mark.parametrize("ranked", RANKED)
def test_the_most_specific_wins_in_any_order_of_the_file(ranked: list[Route]) -> None:
    for start in range(len(ranked)):
        for some in (ranked[start:], [*ranked[:start:-1], ranked[start]]):
            match = ask(router(*some), "/x/1", "a.b.com", k="v", k2="v2")
            assert name(match) == ranked[start].name


def test_a_specific_route_that_does_not_match_as_a_whole_is_none() -> None:
    routes = router(
        to("host", hosts=("a.com",), path="/only"),
        to("wild", hosts=("*.com",), path="=/x", headers=(("k", "v"),)),
        to("prefix", path="/x/y", headers=(("k", "v"),)),
        to("shorter", path="/x"),
    )

    assert name(ask(routes, "/x", "a.com")) == "shorter"
    assert name(ask(routes, "/x/y/z", "a.com")) == "shorter"
    assert name(ask(routes, "/x/y/z", "a.com", k="v")) == "prefix"
    assert name(ask(routes, "/x", "a.com", k="v")) == "wild"


def test_names_decide_last() -> None:
    for routes in permutations([to("a", methods=("GET",)), to("b", methods=("GET", "PUT"))]):
        assert name(ask(router(*routes))) == "a"
        assert name(ask(router(*routes), method="PUT")) == "b"


# --- When no route takes it -------------------------------------------------------------------


def test_a_method_that_no_route_takes_is_told_which_are() -> None:
    routes = router(
        to("read", path="/x", methods=("GET", "HEAD")),
        to("write", path="/x", methods=("PUT",)),
        to("other", path="/y", methods=("PATCH",)),
        to("secret", path="/x", methods=("PURGE",), headers=(("k", "v"),)),
        to("wild", hosts=("*.com",), path="/x", methods=("LOCK",)),
    )

    match = ask(routes, "/x/1", method="POST")

    assert match == Match(Kind.METHOD_NOT_ALLOWED, allow=("GET", "HEAD", "LOCK", "PUT"))
    assert ask(routes, "/x", method="POST", host="a.org").allow == ("GET", "HEAD", "PUT")
    assert "PURGE" in ask(routes, "/x", method="POST", k="v").allow
    assert name(ask(routes, "/z", method="POST")) == "(forward)"  # the listener's default
    assert name(ask(router(*routes_with_default()), "/x", method="POST")) == "all"


def routes_with_default() -> tuple[Route, ...]:
    return to("read", path="/x", methods=("GET",)), to("all")


@pytest.mark.parametrize(
    ("own", "upstreams", "routes", "expected"),
    [
        ("app", UPSTREAMS, (), "app"),
        ("app", UPSTREAMS, (to("r", path="/r"),), "app"),
        (None, ("app",), (), "app"),
        (None, ("app",), (to("r", path="/r"),), None),
        (None, ("app",), (to("r", path="/r", listeners=("inner",)),), None),
        (None, UPSTREAMS, (), None),
        (None, (), (), None),
    ],
)
def test_defaults(
    own: str | None, upstreams: Sequence[str], routes: Sequence[Route], expected: str | None
) -> None:
    made = Router(routes, [Listener("http", (":80",), upstream=own)], upstreams)

    match = ask(made)

    assert match.upstream == expected
    assert match.kind is (Kind.NOT_FOUND if expected is None else Kind.FORWARD)


def test_single_is_the_answer_to_everything() -> None:
    none, inner = router(), router(to("r", listeners=("inner",)))

    assert none.single("http") == Match(Kind.FORWARD, upstream="app")
    assert none.single("inner") is NOT_FOUND
    assert none.single("gone") is NOT_FOUND
    assert inner.single("http") == Match(Kind.FORWARD, upstream="app")
    single = inner.single("inner")
    assert single is not None
    assert name(single) == "r"


def router_single(*routes: Route) -> Match | None:
    return router(*routes).single("http")


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ((to("a"),), "a"),
        ((to("a", path="/"),), "a"),
        ((to("a"), to("b", path="/")), "b"),
        ((to("a"), to("b", methods=("GET",))), None),
        ((to("a"), to("b", path="=/b")), None),
        ((to("a"), to("b", path="/b")), None),
        ((to("a"), to("b", path="~b")), None),
        ((to("a"), to("b", hosts=("b.com",))), None),
        ((to("b", hosts=("*.com",)),), None),
        ((to("a", methods=("GET",)),), None),
        ((to("a", headers=(("k", "v"),)),), None),
        ((to("a", path="/a"),), None),
    ],
)
def test_single(routes: tuple[Route, ...], expected: str | None) -> None:
    single = router_single(*routes)

    assert (None if single is None else name(single)) == expected


# --- Against the rule as it is written --------------------------------------------------------

HOSTS = st.sampled_from(["a.com", "b.a.com", "*.a.com", "*.com", "c.org"])
PATHS = st.sampled_from([None, "/", "/x", "/x/y", "=/x", "=/x/y", "~x", "~^/x/y$", "~."])
METHODS = st.sampled_from(["GET", "PUT", "POST"])
FIELDS = st.sampled_from([("k", "v"), ("k", "w"), ("l", "v")])
ROUTES = st.lists(
    st.builds(
        to,
        st.just(""),
        listeners=st.sampled_from([(), (), ("http",), ("inner",)]),
        hosts=st.lists(HOSTS, max_size=2, unique=True).map(tuple),
        path=PATHS,
        methods=st.lists(METHODS, max_size=2, unique=True).map(tuple),
        headers=st.lists(FIELDS, max_size=2, unique=True).map(tuple),
    ),
    max_size=7,
).map(
    lambda some: [
        to(
            f"r{number}",
            listeners=one.listeners,
            hosts=one.hosts,
            path=one.path,
            methods=one.methods,
            headers=one.headers,
        )
        for number, one in enumerate(some)
    ]
)


def host_rank(route: Route, host: str) -> tuple[int, int]:
    """Return how specific the best host of a route is for this request."""
    ranks = [(2, 0) for pattern in route.hosts if pattern == host]
    ranks += [
        (1, len(pattern))
        for pattern in route.hosts
        if pattern[0] == "*" and host.endswith(pattern[1:]) and len(host) >= len(pattern)
    ]
    return max(ranks, default=(0, 0))


def path_rank(route: Route) -> tuple[int, int]:
    if route.path is None:
        return 0, 0
    return {"=": 3, "/": 2, "~": 1}[route.path[0]], len(route.path)


@settings(max_examples=300, deadline=None)
@given(
    routes=ROUTES,
    host=st.sampled_from(["a.com", "b.a.com", "d.b.a.com", "c.org", ""]),
    path=st.sampled_from(["/", "/x", "/x/y", "/x/y/z", "/q"]),
    method=METHODS,
    fields=st.dictionaries(st.sampled_from("kl"), st.sampled_from("vw").map(lambda v: [v])),
)
def test_the_choice_is_the_one_of_the_rule(
    routes: list[Route], host: str, path: str, method: str, fields: dict[str, list[str]]
) -> None:
    made = router(*routes)

    def headers(of: str) -> Sequence[str]:
        return fields.get(of, ())

    reasons = {reason.route: reason for reason in made.explain("http", host, path, method, headers)}
    fitting = [route for route in routes if reasons[route.name].matches]
    match = made.route("http", host, path, method, headers)

    assert len(reasons) == len(routes)
    if fitting:
        best = min(
            fitting,
            key=lambda route: (
                tuple(-n for n in (*host_rank(route, host), *path_rank(route))),
                -(bool(route.listeners) + bool(route.methods) + len(route.headers)),
                route.name,
            ),
        )
        assert name(match) == best.name
    elif any("its method is" in reason.why for reason in reasons.values()):
        fields_fit = [
            route
            for route in routes
            if "its method is" in reasons[route.name].why
            and all(value in headers(of) for of, value in route.headers)
        ]
        allow = sorted({one for route in fields_fit for one in route.methods})
        assert list(match.allow) == allow
        assert (match.kind is Kind.METHOD_NOT_ALLOWED) is bool(allow)
    else:
        assert match == Match(Kind.FORWARD, upstream="app")
    single = made.single("http")
    assert single is None or name(single) == name(match)


# --- Explaining -------------------------------------------------------------------------------


def test_explaining_names_the_first_condition_that_fails() -> None:
    routes = router(
        to("api", hosts=("a.com",), path="/v1", methods=("GET",), headers=(("k", "v"),)),
        to("inner", listeners=("inner",)),
        to("rest"),
    )

    def why(**request: str) -> list[str]:
        asked = {"host": "a.com", "path": "/v1/x", "method": "GET", **request}
        found = routes.explain(
            "http", asked["host"], asked["path"], asked["method"], lambda _: request.get("k", "")
        )
        return [f"{reason.route}{'+' if reason.matches else '-'} {reason.why}" for reason in found]

    assert why(k="v") == [
        "api+ host a.com, path /v1, method GET, header k: v",
        "inner- it is for listener inner, not http",
        "rest+ it takes everything",
    ]
    assert why(host="b.com")[0] == "api- its host is a.com, not b.com"
    assert why(path="/v2")[0] == "api- its path is /v1, not /v2"
    assert why(method="PUT")[0] == "api- its method is GET, not PUT"
    assert why()[0] == "api- its header k is v, not none"
    assert why(k="w")[0] == "api- its header k is v, not w"


# --- Splits -----------------------------------------------------------------------------------


def split(*shares: tuple[str, float]) -> Route:
    return Route("s", split=shares)


CLIENTS = [b"10.%d.%d.%d" % (n % 7, n >> 8, n & 255) for n in range(40_000)]


@pytest.mark.parametrize("keys", [CLIENTS, [b"%d" % n for n in range(40_000)]])
def test_shares_of_a_split(keys: list[bytes]) -> None:
    route = split(("api", 0.9), ("canary", 0.09), ("static", 0.01))

    got = Counter(pick_share(route, key) for key in keys)

    for upstream, share in route.split:
        assert got[upstream] / len(keys) == pytest.approx(share, abs=0.006)


def test_a_growing_share_keeps_who_it_has() -> None:
    few = split(("canary", 0.01), ("api", 0.99))
    more = split(("canary", 0.1), ("api", 0.9))
    for key in CLIENTS[:5000]:
        if pick_share(few, key) == "canary":
            assert pick_share(more, key) == "canary"


def test_shares_that_sum_to_a_hair_less_leave_nobody_out() -> None:
    thirds = split(("a", 1 / 3), ("b", 1 / 3), ("c", 0.333))

    assert {pick_share(thirds, key) for key in CLIENTS} == {"a", "b", "c"}
    assert pick_share(split(("a", 1.0), ("b", 0.0)), b"any") == "a"


def test_all_versions_of_accord_split_alike() -> None:
    halves = split(("a", 0.5), ("b", 0.5))

    assert (
        "".join(pick_share(halves, b"%d" % n) for n in range(32))
        == "abbababaababaabbbabaabbaaaabbbaa"
    )


# --- Routes that nothing tells apart ----------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ({}, {}, True),
        ({"path": "/v1"}, {"path": "/v1/"}, True),
        ({"path": "/v1"}, {"path": "=/v1"}, False),
        ({"path": "/%7ea"}, {"path": "/~a"}, True),
        ({"path": "~a"}, {"path": "~b"}, False),
        ({"hosts": ("a.com", "b.com")}, {"hosts": ("b.com", "a.com")}, True),
        ({"hosts": ("a.com",)}, {"hosts": ("a.com", "b.com")}, False),
        ({"methods": ("GET", "PUT")}, {"methods": ("PUT", "GET")}, True),
        ({"methods": ("GET",)}, {}, False),
        ({"headers": (("k", "v"),)}, {"headers": (("k", "v"),)}, True),
        ({"headers": (("k", "v"),)}, {"headers": (("k", "w"),)}, False),
        ({"listeners": ("http",)}, {"listeners": ("inner",)}, False),
        ({"listeners": ("http",)}, {}, True),
        ({"listeners": ("http", "inner")}, {"listeners": ("inner",)}, True),
        ({}, {"path": "/"}, False),
    ],
)
def test_conflicts(one: dict[str, object], other: dict[str, object], clash: bool) -> None:
    found = conflicts([to("a", **one), to("between", path="/between"), to("b", **other)])

    assert found == ([("a", "b")] if clash else [])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/admin%2Fx", None),
        ("/%2Fadmin", None),
        ("/admin%2F", None),
        ("/admin/a%2Fb", "admin"),
        ("/files/a%2Fb", "files"),
        ("/a%2Fadmin", "rest"),
        ("/files%2F", None),
    ],
)
def test_an_encoded_slash_that_decides(path: str, expected: str | None) -> None:
    routes = router(to("admin", path="/admin"), to("files", path="/files/"), to("rest"))
    if expected is None:
        with pytest.raises(ClientError, match="two routes' at once"):
            ask(routes, path)
    else:
        found = ask(routes, path).route
        assert found is not None
        assert found.name == expected


def test_an_encoded_slash_in_front_of_another_method() -> None:
    routes = router(to("get", path="/v1", methods=("GET",)), to("rest"))
    with pytest.raises(ClientError):
        ask(routes, "/v1%2Fx", method="GET")
    assert ask(routes, "/v1%2Fx", method="PUT").route is not None  # Both are the other one's.
