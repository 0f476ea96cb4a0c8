"""What a call says of itself, read with a memory: the same as read without."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.predictor.rpc.heads import HeadError, Heads, write_fields, write_status

NAMES = st.sampled_from([b":path", b"x", b"content-type", b"authorization"])
BLOCKS = st.lists(
    st.lists(st.tuples(NAMES, st.sampled_from([b"", b"a", b"bb", b"c" * 3_000])), max_size=4), max_size=12
)


@given(BLOCKS, st.lists(st.sampled_from([0, 60, 4_096]), max_size=3), st.data())
def test_a_memory_of_blocks_reads_what_a_decoder_reads(
    blocks: list[list[tuple[bytes, bytes]]], sizes: list[int], data: st.DataObject
):
    encoder, decoder, heads = hpack.Encoder(), hpack.Decoder(), Heads()
    for fields in blocks * 3:
        if sizes and data.draw(st.booleans()):
            encoder.header_table_size = sizes[0]
            sizes = sizes[1:]
        sensitive = data.draw(st.booleans())
        block = encoder.encode([(name, value, sensitive) for name, value in fields])
        assert dict(heads.read(block).fields) == dict(decoder.decode(block, raw=True))


def test_a_block_that_is_known_is_not_decoded_again():
    encoder, heads = hpack.Encoder(), Heads()
    fields = [(b":path", b"/a.B/C"), (b"authorization", b"Bearer x")]
    heads.read(encoder.encode(fields))
    again = encoder.encode(fields)
    assert heads.read(again) is heads.read(again)


def entered(name: bytes, value: bytes) -> bytes:
    """A field that enters the table, whether or not it is there."""
    return b"\x40" + write_fields([(name, value)])[1:]


def test_a_block_that_had_no_room_in_the_table_is_read_again_when_there_is_some():
    heads, block = Heads(), entered(b"x", b"a")
    heads.read(b"\x20")  # no room
    heads.read(block)
    heads.read(b"\x3f\x1d")  # 60 bytes: for one
    heads.read(block)
    assert dict(heads.read(b"\xbe").fields) == {b"x": b"a"}


def test_a_block_that_leaves_the_same_field_in_front_of_others_is_noticed():
    heads, front = Heads(), entered(b"x", b"a" * 1_000)
    second = b"\xbf"  # the field behind it
    heads.read(entered(b"y", b"b" * 1_000) + front)
    assert dict(heads.read(second).fields) == {b"y": b"b" * 1_000}
    heads.read(entered(b"z", b"c" * 3_000) + front)
    assert dict(heads.read(second).fields) == {b"z": b"c" * 3_000}


@pytest.mark.parametrize("block", [b"\xff", b"\xff\xff\xff\xff\xff", b"\x40\x05ab", b"\x3f\xff\xff\xff\x0f"])
def test_what_cannot_be_read_is_refused(block: bytes):
    with pytest.raises(HeadError):
        Heads().read(block)


def test_fields_that_grow_when_they_are_unpacked_are_bounded():
    heads = Heads()
    heads.read(hpack.Encoder().encode([(b"x", b"y" * 3_000)]))  # 62 is the entry that this made
    with pytest.raises(HeadError):
        heads.read(b"\xbe" * 40)


@pytest.mark.parametrize(
    ("value", "timeout_s"),
    [(b"2S", 2.0), (b"250m", 0.25), (b"1H", 3_600.0), (b"99999999H", 999_999.0), (b"5u", 5e-6), (b"0n", 0.0),
     (b"", None), (b"5", None), (b"5x", None), (b"123456789S", None), (b"-5S", None)],
)  # fmt: skip
def test_how_long_the_caller_waits(value: bytes, timeout_s: float | None):
    head = Heads().read(hpack.Encoder().encode([(b"grpc-timeout", value)]))
    assert head.timeout_s == pytest.approx(timeout_s)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=40_000)), max_size=3))
def test_written_fields_are_read_by_another_decoder(fields: list[tuple[bytes, bytes]]):
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    assert [tuple(field) for field in decoder.decode(write_fields(fields), raw=True)] == fields


def test_words_of_a_status_are_quoted():
    fields = dict(hpack.Decoder().decode(write_status(3, "50 % of ü\nx", [(b"a", b"b")]), raw=True))
    assert fields == {b"grpc-status": b"3", b"grpc-message": b"50 %25 of %C3%BC%0Ax", b"a": b"b"}
