"""The HTTP/2 of the gRPC door, against another implementation of the client's side."""

from __future__ import annotations

import asyncio

import pytest
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    PingAckReceived,
    StreamReset,
)
from h2.settings import SettingCodes
from hyperframe.frame import (
    GoAwayFrame,
    RstStreamFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_apps.predictor.rpc import connection as under_test
from tests.ray_apps.predictor.rpc.client import FIELDS, Wire


@given(bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=5), piece=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_calls_are_answered_however_their_bytes_are_cut(bodies: list[bytes], piece: int):
    async def exchange() -> None:
        wire = Wire()
        numbers = [wire.call(body) for body in bodies]
        wire.pass_on(piece)
        await wire.settle()
        for number, body in zip(numbers, bodies, strict=True):
            data, fields = wire.answer(number)
            assert (data, fields["grpc-status"], fields["path"]) == (body, "0", "/a.B/C")
            assert fields[":status"] == "200"
        assert wire.port.calls == 0

    asyncio.run(exchange())


async def test_answers_of_one_moment_go_out_together_and_a_lone_one_at_once():
    wire = Wire()
    wire.client.update_settings({SettingCodes.ENABLE_PUSH: 0})
    await wire.settle()
    numbers = [wire.call(b"%d" % i) for i in range(10)]
    before = wire.writes
    await wire.settle()
    assert [wire.answer(number)[0] for number in numbers] == [b"%d" % i for i in range(10)]
    assert wire.writes - before <= 3  # more only if that took longer than they are gathered for


async def test_padding_priority_and_continuations_are_read():
    wire = Wire()
    ranked, wide = wire.client.get_next_available_stream_id(), wire.client.get_next_available_stream_id() + 2
    wire.client.send_headers(
        ranked, FIELDS, priority_weight=7, priority_depends_on=0, priority_exclusive=False
    )
    many = [(f"x-{i}", "y" * 900) for i in range(40)]  # 28 kB packed: two frames
    wire.client.send_headers(wide, [*FIELDS, *many])
    for number in (ranked, wide):
        wire.client.send_data(number, b"a", pad_length=9)
        wire.client.send_data(number, b"b", pad_length=0, end_stream=True)
    await wire.settle()
    assert [wire.answer(number)[0] for number in (ranked, wide)] == [b"ab", b"ab"]


async def test_a_request_may_end_with_an_empty_frame_or_with_trailers():
    wire = Wire()
    one, two, three = (wire.client.get_next_available_stream_id() + 2 * i for i in range(3))
    for number, body in ((one, b"a"), (two, b"b"), (three, b"")):
        wire.client.send_headers(number, FIELDS)
        if body:
            wire.client.send_data(number, body)
    wire.client.end_stream(one)
    wire.client.send_headers(two, [("x", "y")], end_stream=True)
    wire.client.end_stream(three)
    await wire.settle()
    assert [wire.answer(number)[0] for number in (one, two, three)] == [b"a", b"b", b""]


async def test_a_large_request_is_let_through_and_one_too_large_ends_alone():
    wire = Wire()
    wire.service.max_message_bytes = 6 << 20
    good, bad = wire.client.get_next_available_stream_id(), wire.client.get_next_available_stream_id() + 2
    left = {good: 6 << 20, bad: 7 << 20}
    for number in left:
        wire.client.send_headers(number, FIELDS)
    for _ in range(2_000):
        for number in list(left):
            ended = any(isinstance(e, StreamReset) and e.stream_id == number for e in wire.events)
            room = 0 if ended else min(wire.client.local_flow_control_window(number), 16_384, left[number])
            if room:
                left[number] -= room
                wire.client.send_data(number, b"x" * room, end_stream=left[number] == 0)
        await asyncio.sleep(0)
        wire.pass_on()
        for event in [e for e in wire.events if isinstance(e, DataReceived) and e.flow_controlled_length]:
            wire.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            event.flow_controlled_length = 0
    await wire.settle()
    assert len(wire.answer(good)[0]) == 6 << 20
    assert wire.answer(bad)[1]["grpc-status"] == "8"
    assert wire.ended_with() is None
    assert wire.port.calls == 0


@pytest.mark.parametrize("window", [0, 1, 1_000, 70_000])
async def test_an_answer_waits_for_the_clients_windows(window: int):
    wire = Wire()
    wire.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
    await wire.settle()
    body = bytes(range(256)) * 1_000
    number = wire.client.get_next_available_stream_id()
    wire.client.send_headers(number, FIELDS)
    for at in range(0, len(body), 16_000):
        wire.client.send_data(number, body[at : at + 16_000], end_stream=at + 16_000 >= len(body))
    await wire.settle()
    assert len(wire.answer(number)[0]) == min(window, 65_535)
    assert wire.port.calls == 1
    wire.client.increment_flow_control_window(100_000)  # of the connection
    wire.client.increment_flow_control_window(100_000, number)
    await wire.settle()
    wire.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 300_000})
    wire.client.increment_flow_control_window(200_000)
    await wire.settle()
    assert wire.answer(number)[0] == body
    assert wire.answer(number)[1]["grpc-status"] == "0"
    assert wire.port.calls == 0


async def test_answers_that_wait_for_the_connection_go_on_in_turn():
    wire = Wire()
    numbers = [wire.call(b"%d" % i * 15_000) for i in range(6)]  # 90 kB; 64 at first
    await wire.settle()
    whole = [number for number in numbers if "grpc-status" in wire.answer(number)[1]]
    assert 0 < len(whole) < 6
    wire.client.increment_flow_control_window(100_000)
    await wire.settle()
    assert [wire.answer(number)[0] for number in numbers] == [b"%d" % i * 15_000 for i in range(6)]


async def test_a_call_that_is_given_up_ends_its_work_and_many_end_the_connection():
    wire = Wire()
    number = wire.call(b"wait")
    await wire.settle()
    wire.client.reset_stream(number, ErrorCodes.CANCEL)
    await wire.settle()
    assert (wire.service.begun, wire.service.cancelled, wire.port.calls) == (1, 1, 0)
    given_up = 1
    while not wire.closed and given_up < 2 * under_test.MAX_NUISANCES:
        wire.client.reset_stream(wire.call(b"wait"), ErrorCodes.CANCEL)
        wire.server.data_received(wire.client.data_to_send())
        given_up += 1
    assert given_up == under_test.MAX_NUISANCES
    wire.listen()
    assert wire.ended_with() == ErrorCodes.ENHANCE_YOUR_CALM
    assert wire.closed


async def test_a_deadline_answers_and_ends_the_work():
    wire = Wire()
    number = wire.call(b"wait", [*FIELDS, ("grpc-timeout", "20m")])
    until = asyncio.get_running_loop().time() + 10
    while "grpc-status" not in wire.answer(number)[1] and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.005)
        wire.pass_on()
    assert wire.answer(number)[1]["grpc-status"] == "4"
    await wire.settle()
    assert wire.service.cancelled == 1


async def test_who_leaves_answers_what_is_here_and_takes_no_more():
    wire = Wire()
    number = wire.call(b"wait")
    await wire.settle()
    wire.server.leave()
    late = wire.call(b"late")
    wire.server.data_received(wire.client.data_to_send())
    assert not wire.closed
    wire.service.released.set()
    for _ in range(3):
        await asyncio.sleep(0)
    goodbye, refused, begun, data, _ = wire.frames()  # h2 takes no frame after a GOAWAY
    assert (type(goodbye), goodbye.last_stream_id) == (GoAwayFrame, number)
    assert (type(refused), refused.stream_id) == (RstStreamFrame, late)
    assert refused.error_code == ErrorCodes.REFUSED_STREAM
    assert (begun.stream_id, data.stream_id, data.data) == (number, number, b"wait")
    assert wire.closed


async def test_nothing_is_sent_to_who_has_gone():
    wire = Wire()
    numbers = [wire.call(b"wait"), wire.call(b"hi")]
    wire.server.data_received(wire.client.data_to_send())
    await asyncio.sleep(0)  # one is answered, and waits to be sent with what else is said now
    wire.close()
    wire.server.connection_lost(None)
    wire.service.released.set()
    sent = wire.writes
    for _ in range(5):
        await asyncio.sleep(0)
    assert (wire.writes, wire.port.calls, wire.service.cancelled) == (sent, 0, 1)
    assert len(numbers) == wire.service.begun


async def test_pings_are_answered_and_a_client_that_does_not_read_is_not_read_from():
    wire = Wire()
    wire.client.ping(b"12345678")
    await wire.settle()
    assert wire.first(PingAckReceived).ping_data == b"12345678"
    wire.server.pause_writing()
    assert wire.paused
    wire.server.resume_writing()
    assert not wire.paused


async def test_what_is_no_grpc_is_refused_and_what_is_no_http2_told_so():
    wire = Wire()
    number = wire.call(b"{}", [*FIELDS[:4], ("content-type", "application/json")])
    await wire.settle()
    assert wire.answer(number)[1][":status"] == "415"
    assert wire.answer(wire.call())[1] == {}
    other = Wire(greet=False)
    other.server.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert b"this port speaks gRPC" in other.raw
    assert other.closed


async def test_who_is_slow_is_given_up(monkeypatch: pytest.MonkeyPatch):
    wire, silent = Wire(), Wire(greet=False)
    number = wire.client.get_next_available_stream_id()
    wire.client.send_headers(number, FIELDS)
    wire.client.send_data(number, b"half")
    working = wire.call(b"wait")
    await wire.settle()
    for one in (wire, silent):
        one.server.check()
    assert not silent.closed
    monkeypatch.setattr(under_test, "PATIENCE_S", -1)
    for one in (wire, silent):
        one.server.check()
    await wire.settle()
    assert silent.closed
    assert wire.first(StreamReset).stream_id == number
    assert not wire.closed  # a call that is worked on is not slow
    assert wire.port.calls == 1
    wire.server.pause_writing()  # and does not read
    wire.server.check()
    assert wire.closed
    wire.server.connection_lost(None)
    assert (wire.port.calls, wire.open) == (0, set())
    assert working != number
