import os
import socket
from collections.abc import Iterator

import pytest

from toque.ray_apps.local.errors import PortTaken
from toque.ray_apps.local.settings import PortHolder, Ports, choose_ports, find_holder

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_free_port_has_no_holder() -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    assert find_holder(port) is None


def test_the_holder_of_a_port_is_named_with_pid_and_command(taken: int) -> None:
    holder = find_holder(taken)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert holder.command in str(holder)
    assert "python" in holder.command
    assert f"pid {os.getpid()}" in str(holder)


def test_a_port_held_at_every_address_is_held_on_loopback_too() -> None:
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))  # noqa: S104  # the case
        listening.listen()
        holder = find_holder(listening.getsockname()[1])
    assert holder is not None
    assert holder.pid == os.getpid()


def test_a_taken_port_is_replaced_and_the_note_names_both(taken: int) -> None:
    chosen, moved = choose_ports(Ports(http=taken), host=HOST)
    assert chosen.http != taken
    assert find_holder(chosen.http) is None
    note = next(str(each) for each in moved if each.purpose == "http")
    assert f"port {taken} (http) is held by" in note
    assert f"using {chosen.http}" in note


def test_a_fixed_port_that_is_taken_is_an_error_that_names_the_holder(taken: int) -> None:
    with pytest.raises(PortTaken, match=rf"port {taken} \(http\) is held by .*pid {os.getpid()}"):
        choose_ports(Ports(http=taken), host=HOST, fixed=True)


def _fake(held: set[int]) -> object:
    return lambda port, _host: PortHolder(port, 1, "init") if port in held else None


def test_no_port_is_chosen_twice() -> None:
    wanted = Ports(http=9000, jobs=9000, redis=9001, gcs=9001)
    chosen, _ = choose_ports(wanted, host=HOST, holder=_fake(set()))  # type: ignore[arg-type]
    assert len(set(chosen.model_dump().values())) == len(chosen.model_dump())


def test_no_free_port_nearby_is_an_error() -> None:
    with pytest.raises(PortTaken, match="no free port from 9000"):
        choose_ports(Ports(http=9000), host=HOST, holder=_fake(set(range(9000, 9300))))  # type: ignore[arg-type]
