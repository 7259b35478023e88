"""Addresses are bound once, shared with nobody by accident, and given back whole."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lb.errors import StartError
from lb.sockets import OWN_MODE, Place, Sockets, parse


def free_port(host: str = "127.0.0.1", family: socket.AddressFamily = socket.AF_INET) -> int:
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def bound(sockets: Sockets, *addresses: str, **how: Any) -> list[str]:
    return asyncio.run(sockets.ensure(addresses, **how))


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("127.0.0.1:80", Place(socket.AF_INET, ("127.0.0.1", 80))),
        ("[::1]:80", Place(socket.AF_INET6, ("::1", 80))),
        ("unix:/run/app.sock", Place(socket.AF_UNIX, "/run/app.sock")),
    ],
)
def test_parse(address: str, place: Place) -> None:
    assert parse(address) == place


@pytest.mark.parametrize("address", ["80", "a:b", "localhost:80", "127.0.0.1:", "x:", ":²"])
def test_parse_refuses(address: str) -> None:
    with pytest.raises(StartError, match="no address"):
        parse(address)


def test_each_slot_has_a_queue_of_its_own() -> None:
    address = f"127.0.0.1:{free_port()}"
    sockets = Sockets(slots=3)
    assert bound(sockets, address) == [address]
    assert len({sockets.held[address].of(slot).fileno() for slot in range(3)}) == 3
    assert bound(sockets, address) == []  # Held already: neither probed nor bound again.
    sockets.close()


def test_all_addresses_take_both_families() -> None:
    port = free_port()
    sockets = Sockets()
    bound(sockets, f":{port}")
    hosts = ["127.0.0.1"] + ["::1"] * socket.has_dualstack_ipv6()
    for host in hosts:
        with socket.create_connection((host, port), 2):
            sockets.held[f":{port}"].of(0).accept()[0].close()
    sockets.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="IPv6 is off here")
def test_an_ipv6_address() -> None:
    port = free_port("::1", socket.AF_INET6)
    sockets = Sockets(slots=2)
    bound(sockets, f"[::1]:{port}")
    with socket.create_connection(("::1", port), 2):
        pass
    sockets.close()


def test_a_port_that_another_daemon_would_share_is_refused() -> None:
    address = f"127.0.0.1:{free_port()}"
    first, second = Sockets(slots=2), Sockets(slots=2)
    bound(first, address)
    other = f"127.0.0.1:{free_port()}"
    with pytest.raises(StartError, match=f"cannot listen on {address}: another program") as told:
        bound(second, other, address, patience=0.2)
    assert told.value.exit_status == 7
    assert "ss -ltnp" in told.value.hint
    assert second.held == {}  # All or nothing.
    first.close()


def test_a_predecessor_that_is_just_ending_is_waited_for() -> None:
    async def scene() -> None:
        address = f"127.0.0.1:{free_port()}"
        first, second = Sockets(), Sockets()
        await first.ensure([address])
        asyncio.get_running_loop().call_later(0.15, first.close)
        await second.ensure([address])
        second.close()

    asyncio.run(scene())


def test_connections_in_time_wait_are_in_nobodys_way() -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    first = Sockets()
    bound(first, address)
    with socket.create_connection(("127.0.0.1", port), 2) as client:
        server, _ = first.held[address].of(0).accept()
        server.close()  # Who closes first keeps TIME_WAIT: our side.
        assert client.recv(1) == b""
    first.close()
    second = Sockets()
    bound(second, address, patience=0)
    second.close()


def test_a_unix_socket_is_one_queue_and_its_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    sockets = Sockets(slots=2)
    bound(sockets, f"unix:{path}")
    held = sockets.held[f"unix:{path}"]
    assert held.of(0) is held.of(1)
    sockets.close()
    assert not path.exists()


def test_our_own_unix_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    sockets = Sockets()
    bound(sockets, f"unix:{tmp_path}/admin.sock", own=True)
    assert os.stat(tmp_path / "admin.sock").st_mode & 0o777 == OWN_MODE
    assert sockets.listeners() == []
    sockets.close()


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    sockets = Sockets()
    bound(sockets, f"unix:{path}")
    sockets.close()


def occupied(path: Path) -> Callable[[], None]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(1)
    return sock.close


def plain_file(path: Path) -> Callable[[], None]:
    path.write_text("precious")
    return path.unlink


def no_folder(path: Path) -> Callable[[], None]:
    path.parent.rmdir()
    return path.parent.mkdir


@pytest.mark.parametrize(
    ("obstacle", "told"),
    [
        (occupied, "another program listens there"),
        (plain_file, "no socket"),
        (no_folder, "its folder does not exist"),
    ],
)
def test_what_is_in_the_way_of_a_unix_socket_is_said(
    obstacle: Callable[[Path], Callable[[], None]], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "app.sock"
    path.parent.mkdir()
    undo = obstacle(path)
    with pytest.raises(StartError, match=told):
        bound(Sockets(), f"unix:{path}", patience=0)
    undo()


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(StartError, match="does not have that address"):
        bound(Sockets(), "192.0.2.1:8080", patience=0)
