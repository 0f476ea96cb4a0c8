"""What a client may do wrong in HTTP/2, and that no bytes are our fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PushPromiseFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ray_apps.predictor.rpc.client import Wire


def flagged(frame: Any, *flags: str) -> bytes:
    for flag in flags:
        frame.flags.add(flag)
    data: bytes = frame.serialize()
    return data


FAULTS = {
    "data on a stream that was not opened": (DataFrame(7, b"x").serialize(), ErrorCodes.PROTOCOL_ERROR),
    "data on stream 0": (b"\0\0\1\0\0\0\0\0\0x", ErrorCodes.PROTOCOL_ERROR),
    "a stream of even number": (flagged(HeadersFrame(2, b"\x82"), "END_HEADERS"), ErrorCodes.PROTOCOL_ERROR),
    "a push": (flagged(PushPromiseFrame(1, 2, b"\x82"), "END_HEADERS"), ErrorCodes.PROTOCOL_ERROR),
    "a continuation of nothing": (ContinuationFrame(1, b"\x82").serialize(), ErrorCodes.PROTOCOL_ERROR),
    "a frame amid fields": (
        HeadersFrame(1, b"\x82").serialize() + SettingsFrame(0).serialize(),
        ErrorCodes.PROTOCOL_ERROR,
    ),
    "fields without end": (
        HeadersFrame(1, b"").serialize() + ContinuationFrame(1, b"").serialize() * 100,
        ErrorCodes.ENHANCE_YOUR_CALM,
    ),
    "fields that cannot be read": (
        flagged(HeadersFrame(1, b"\xff\xff\xff"), "END_HEADERS"),
        ErrorCodes.COMPRESSION_ERROR,
    ),
    "a table that is too large": (
        flagged(HeadersFrame(1, b"\x3f\xff\xff\x03"), "END_HEADERS"),
        ErrorCodes.COMPRESSION_ERROR,
    ),
    "more padding than frame": (b"\0\0\2\0\x08\0\0\0\1\x09x", ErrorCodes.PROTOCOL_ERROR),
    "a large frame": (b"\x01\0\0\0\0\0\0\0\1", ErrorCodes.FRAME_SIZE_ERROR),
    "a short ping": (b"\0\0\1\6\0\0\0\0\0x", ErrorCodes.FRAME_SIZE_ERROR),
    "a short reset": (b"\0\0\1\3\0\0\0\0\1x", ErrorCodes.FRAME_SIZE_ERROR),
    "half a setting": (b"\0\0\1\4\0\0\0\0\0x", ErrorCodes.FRAME_SIZE_ERROR),
    "a window of nothing": (b"\0\0\4\x08\0\0\0\0\0\0\0\0\0", ErrorCodes.FLOW_CONTROL_ERROR),
    "a window too wide": (WindowUpdateFrame(0, (1 << 31) - 1).serialize(), ErrorCodes.FLOW_CONTROL_ERROR),
    "an initial window too wide": (b"\0\0\6\4\0\0\0\0\0\0\4\x80\0\0\0", ErrorCodes.FLOW_CONTROL_ERROR),
    "settings without end": (SettingsFrame(0).serialize() * 1_100, ErrorCodes.ENHANCE_YOUR_CALM),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_ends_the_connection_with_its_code(name: str):
    sent, code = FAULTS[name]
    wire = Wire()
    wire.server.data_received(sent)
    wire.listen()
    assert wire.ended_with() == code
    assert wire.closed


FRAMES = st.tuples(st.integers(0, 11), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=30)).map(
    lambda f: len(f[3]).to_bytes(3, "big") + bytes((f[0], f[1])) + f[2].to_bytes(4, "big") + f[3]
)


@given(st.lists(FRAMES | st.binary(max_size=20), max_size=12))
@settings(max_examples=400, deadline=None)
def test_no_bytes_are_our_fault(said: list[bytes]):
    async def exchange() -> None:
        wire = Wire()
        for one in said:
            if not wire.closed:
                wire.server.data_received(one)
        await asyncio.sleep(0)
        wire.server.connection_lost(None)
        await asyncio.sleep(0)
        assert wire.port.calls == 0

    asyncio.run(exchange())
