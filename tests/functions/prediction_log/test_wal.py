from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from toque.functions.prediction_log.errors import LogFullError
from toque.functions.prediction_log.frames import HEADER_BYTES, encode_frame, read_frames, whole_frames
from toque.functions.prediction_log.writing import wal
from toque.functions.prediction_log.writing.wal import (
    SegmentReader,
    WriteAheadLog,
    claim,
    intact_records,
    recover,
    segments_of,
)

PAYLOADS = st.lists(st.binary(max_size=40), max_size=12)


def read_all(log: WriteAheadLog, *, chunk_bytes: int = 64) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while (chunk := log.read_after(found[-1][0] if found else 0, chunk_bytes=chunk_bytes)) is not None:
        frames = list(read_frames(chunk[0]))
        assert (frames[0].number, frames[-1].number) == chunk[1:]
        found += [(frame.number, frame.payload) for frame in frames]
    return found


@given(PAYLOADS, st.integers(0, 400))
def test_a_torn_end_costs_only_the_records_it_cuts(payloads: list[bytes], cut: int):
    frames = [encode_frame(i + 1, payload) for i, payload in enumerate(payloads)]
    data = b"".join(frames)
    kept = data[: max(0, len(data) - cut)]
    found = list(read_frames(kept))
    assert [frame.payload for frame in found] == payloads[: len(found)]
    whole = len(b"".join(frames[: len(found)]))
    assert whole <= len(kept)
    assert len(found) == len(payloads) or len(kept) < whole + len(frames[len(found)])


def test_frames_of_the_checksum_before_are_read():
    payload = b"on its way while code was deployed"
    checksum = zlib.crc32(payload, zlib.crc32((7).to_bytes(8, "little")))
    frame = struct.pack("<QII", 7, len(payload), checksum) + payload
    assert [(found.number, found.payload) for found in read_frames(frame + encode_frame(8, b"new"))] == [
        (7, payload), (8, b"new"),
    ]  # fmt: skip


@given(PAYLOADS.filter(any), st.data())
def test_a_flipped_bit_is_never_returned_as_a_record(payloads: list[bytes], data: st.DataObject):
    raw = bytearray(b"".join(encode_frame(i + 1, payload) for i, payload in enumerate(payloads)))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << (at % 8)
    found = list(read_frames(bytes(raw)))
    assert len(found) < len(payloads)
    assert [frame.payload for frame in found] == payloads[: len(found)]


@given(PAYLOADS, st.integers(0, 12))
def test_whole_frames_finds_what_lies_behind_a_number(payloads: list[bytes], after: int):
    data = b"".join(encode_frame(i + 1, payload) for i, payload in enumerate(payloads))
    start, end, first, last = whole_frames(data + b"torn", after=after)
    found = list(read_frames(data[start:end]))
    assert [frame.payload for frame in found] == payloads[after:]
    assert (first, last) == ((after + 1, len(payloads)) if found else (0, 0))


@given(st.lists(PAYLOADS, max_size=6))
def test_records_written_together_are_those_written_one_by_one(groups: list[list[bytes]]):
    with tempfile.TemporaryDirectory() as folder:
        together, alone = (WriteAheadLog(Path(folder) / name, segment_bytes=100) for name in ("a", "b"))
        payloads = [payload for group in groups for payload in group]
        lasts = [together.extend(group) for group in groups]
        assert lasts == list(itertools.accumulate(len(group) for group in groups))
        assert [alone.append(payload) for payload in payloads] == list(range(1, len(payloads) + 1))
        assert read_all(together) == read_all(alone) == list(enumerate(payloads, 1))
        together.close()
        alone.close()
        assert recover(together.folder) == len(payloads)


@given(st.lists(st.one_of(PAYLOADS, st.sampled_from([8, 60, 1 << 20]), st.just("forget")), max_size=30))
def test_a_reader_that_follows_a_writer_sees_each_record_once_in_order(steps: list[list[bytes] | int | str]):
    with tempfile.TemporaryDirectory() as folder:
        log = WriteAheadLog(Path(folder), segment_bytes=150)
        written: list[bytes] = []
        read: list[bytes] = []
        for step in [*steps, *[60] * 400]:
            if isinstance(step, list):
                log.extend(step)
                written += step
            elif isinstance(step, int):
                chunk = log.read_after(len(read), chunk_bytes=step)
                frames = list(read_frames(chunk[0])) if chunk is not None else []
                assert [frame.number for frame in frames] == [
                    *range(len(read) + 1, len(read) + len(frames) + 1)
                ]
                if chunk is not None:
                    assert chunk[1:] == (frames[0].number, frames[-1].number)
                    assert len(chunk[0]) <= max(step, 2 * 56)  # the longest frame has to fit
                read += [frame.payload for frame in frames]
            else:
                log.forget(len(read))
        assert read == written
        log.close()


def test_of_records_for_which_there_is_no_room_none_is_written(tmp_path: Path):
    log = WriteAheadLog(tmp_path, limit_bytes=300, segment_bytes=100)
    log.append(b"x" * 84)
    with pytest.raises(LogFullError, match="bound is 300"):
        log.extend([b"y" * 84, b"z" * 84, b""])
    assert (log.last, log.size_bytes) == (1, 100)
    assert log.extend([b"y" * 84, b"z" * 84]) == 3
    assert [payload[:1] for _, payload in read_all(log)] == [b"x", b"y", b"z"]
    log.close()


@pytest.mark.parametrize("chunk_bytes", [16, 100, 1 << 20])
def test_records_are_read_back_in_order_over_segments(tmp_path: Path, chunk_bytes: int):
    log = WriteAheadLog(tmp_path, segment_bytes=200)
    payloads = [os.urandom(i * 7 % 150) for i in range(60)]
    numbers = [log.append(payload) for payload in payloads]
    assert numbers == list(range(1, 61))
    assert len(segments_of(log.folder)) > 5
    assert read_all(log, chunk_bytes=chunk_bytes) == list(zip(numbers, payloads, strict=True))
    log.close()


def test_a_reader_that_goes_on_walks_no_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = WriteAheadLog(tmp_path)
    log.append(b"found by walking")
    assert log.read_after(0) is not None
    monkeypatch.setattr(wal, "whole_frames", None)
    for number in (2, 4, 6):
        log.extend([b"one", b"two"])
        chunk = log.read_after(number - 1)
        assert chunk is not None
        assert chunk[1:] == (number, number + 1)
    log.close()


def test_a_reader_can_go_back(tmp_path: Path):
    log = WriteAheadLog(tmp_path, segment_bytes=64)
    for i in range(20):
        log.append(bytes([i]))
    assert read_all(log)[-1][0] == 20
    chunk = log.read_after(7)
    assert chunk is not None
    assert chunk[1] == 8
    log.close()


def test_drained_segments_are_dropped_and_make_room(tmp_path: Path):
    log = WriteAheadLog(tmp_path, limit_bytes=2_000, segment_bytes=500)
    for full in range(1, 21):
        assert log.append(b"x" * 84) == full
    with pytest.raises(LogFullError, match="bound is 2000"):
        log.append(b"x" * 84)
    log.forget(10)
    assert log.size_bytes <= 1_500
    log.forget(full)
    assert log.size_bytes == 0
    assert segments_of(log.folder) == []
    log.forget(full)
    assert log.append(b"again") == full + 1
    assert read_all_after(log, full) == [b"again"]
    log.close()


def read_all_after(log: WriteAheadLog, number: int) -> list[bytes]:
    chunk = log.read_after(number)
    return [] if chunk is None else [frame.payload for frame in read_frames(chunk[0])]


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = WriteAheadLog(tmp_path, segment_bytes=54)
    for payload in (b"one", b"two"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(LogFullError, match=r"cannot take 54 bytes: .*free space"):
                log.append(b"lost, and more than is left")
        log.append(payload)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        log.append(b"")  # what fits where room was taken before is written all the same
    assert [payload for _, payload in read_all(log)] == [b"one", b"two", b""]
    assert [first for first, _ in segments_of(log.folder)] == [1]
    log.close()


@pytest.mark.parametrize("lost", [[b"lost"], [b"lost", b"too"]])
def test_a_disk_that_does_not_take_records_leaves_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: list[bytes]
):
    log = WriteAheadLog(tmp_path, fsync=True)
    log.append(b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
        with pytest.raises(LogFullError, match="cannot write"):
            log.extend(lost)
    assert recover(copy_of(log.folder, tmp_path / "then")) == 1
    assert log.append(b"2") == 2
    assert [payload for _, payload in read_all(log)] == [b"one", b"2"]
    log.close()


def test_a_long_record_is_taken_after_the_disk_refused_the_first_of_a_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log = WriteAheadLog(tmp_path, segment_bytes=100, fsync=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
        with pytest.raises(LogFullError, match="cannot write"):
            log.append(b"lost")
    long = b"more than the segment has room for" * 10
    assert log.append(long) == 1
    assert read_all(log) == [(1, long)]
    assert [first for first, _ in segments_of(log.folder)] == [1]
    log.close()
    assert recover(log.folder) == 1


def copy_of(folder: Path, to: Path) -> Path:
    """What another process would find now."""
    shutil.copytree(folder, to)
    return to


def test_a_record_is_in_the_file_as_soon_as_it_is_acknowledged_and_the_rest_is_no_record(tmp_path: Path):
    log = WriteAheadLog(tmp_path / "log", segment_bytes=10_000)
    for number in range(1, 100):
        log.append(os.urandom(number * 3))
        if number % 9 == 0:
            assert recover(copy_of(log.folder, tmp_path / str(number))) == number
    log.close()
    assert recover(log.folder) == 99
    assert max(path.stat().st_size for _, path in segments_of(log.folder)) <= 10_000


def test_a_process_that_died_while_it_put_a_record_loses_that_one_only(tmp_path: Path):
    log = WriteAheadLog(tmp_path / "log", segment_bytes=10_000)
    log.append(b"whole")
    ((_, path),) = segments_of(log.folder)
    frame = encode_frame(2, b"torn by the end of its process")
    for cut in range(len(frame)):
        for there in (frame[:cut], bytes(16) + frame[16:cut]):  # header first, or last
            folder = copy_of(log.folder, tmp_path / f"{cut}-{there[:1] == bytes(1)}")
            with (folder / path.name).open("r+b") as file:
                file.seek(log.size_bytes)
                file.write(there)
            assert recover(folder) == 1
            assert (folder / path.name).stat().st_size == log.size_bytes
    log.close()


def test_threads_share_one_numbering(tmp_path: Path):
    log = WriteAheadLog(tmp_path, segment_bytes=2_000)

    def write(name: int) -> None:
        for i in range(200):
            log.append(f"{name}:{i}".encode())

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_all(log, chunk_bytes=1_000)
    assert [number for number, _ in found] == list(range(1, 801))
    assert {payload for _, payload in found} == {f"{n}:{i}".encode() for n in range(4) for i in range(200)}
    log.close()


def test_a_living_writer_cannot_be_claimed_and_a_closed_one_can(tmp_path: Path):
    log = WriteAheadLog(tmp_path)
    assert claim(log.folder) is None
    log.close()
    lock = claim(log.folder)
    assert lock is not None
    os.close(lock)


CHILD = """
import sys
from pathlib import Path
from toque.functions.prediction_log.writing.wal import WriteAheadLog
log = WriteAheadLog(Path(sys.argv[1]), segment_bytes=4_000)
print(log.folder, flush=True)
while True:
    print(log.append(b"x" * 50), flush=True)
"""


def test_kill_9_loses_no_acknowledged_record(tmp_path: Path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    folder = Path(child.stdout.readline().strip())
    acknowledged = 0
    while acknowledged < 500:
        acknowledged = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    acknowledged = max([acknowledged, *map(int, rest[:-1])])
    lock = claim(folder)
    assert lock is not None
    last = recover(folder)
    assert last >= acknowledged
    reader, number = SegmentReader(), 0
    while (chunk := reader.read(segments_of(folder), number)) is not None:
        assert chunk[1] == number + 1
        number = chunk[2]
    assert number == last
    os.close(lock)


def test_recover_cuts_a_torn_end(tmp_path: Path):
    log = WriteAheadLog(tmp_path)
    log.append(b"whole")
    log.close()
    (_, path) = segments_of(log.folder)[-1]
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(encode_frame(2, b"torn")[:-1])
    assert recover(log.folder) == 1
    assert path.stat().st_size == size


def test_a_rotated_log_reads_on_and_drops_what_it_held(tmp_path: Path):
    log = WriteAheadLog(tmp_path / "predictions")
    log.append(b"one")
    assert (log.rotate(), log.oldest) == (1, 1)
    assert log.read_after(0) == (encode_frame(1, b"one"), 1, 1)
    log.append(b"two")
    assert log.read_after(1) == (encode_frame(2, b"two"), 2, 2)
    log.forget(1)
    assert log.oldest == 2
    assert [path.name for _, path in segments_of(log.folder)] == [f"{2:020d}.wal"]
    assert (log.rotate(), log.rotate()) == (2, 2)
    log.forget(2)
    assert log.oldest == 3
    assert segments_of(log.folder) == []


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=3, max_size=12),
    st.integers(60, 400),
    st.data(),
)
def test_a_bit_flipped_anywhere_in_a_file_costs_that_record_alone(
    payloads: list[bytes], segment_bytes: int, data: st.DataObject
):
    with tempfile.TemporaryDirectory() as scratch:
        log = WriteAheadLog(Path(scratch), segment_bytes=segment_bytes)
        for payload in payloads:
            log.append(payload)
        log.close()
        segments = segments_of(log.folder)
        _, path = data.draw(st.sampled_from(segments))
        frames = list(read_frames(path.read_bytes()))
        assume(len(frames) > 1 or path != segments[-1][1])  # a damaged last record is a torn end
        struck = data.draw(st.sampled_from(frames[:-1] if path == segments[-1][1] else frames))
        begin = struck.end - len(struck.payload) - HEADER_BYTES
        raw = bytearray(path.read_bytes())
        bit = data.draw(st.integers(8 * begin, 8 * struck.end - 1))
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        assert recover(log.folder) == len(payloads)
        assert path.read_bytes() == raw  # nothing is cut
        left = [(frame.number, frame.payload) for frame in intact_records(log.folder, 0)]
        whole = list(enumerate(payloads, 1))
        assert left == whole[: struck.number - 1] + whole[struck.number :]
        later = [frame.number for frame in intact_records(log.folder, struck.number)]
        assert later == list(range(struck.number + 1, len(payloads) + 1))


def test_a_torn_end_behind_a_damaged_record_is_still_cut(tmp_path: Path):
    log = WriteAheadLog(tmp_path)
    for number in range(5):
        log.append(b"%d" % number * 100)
    log.close()
    ((_, path),) = segments_of(log.folder)
    raw = bytearray(path.read_bytes()[:-30])
    raw[150] ^= 1
    path.write_bytes(raw)
    assert recover(log.folder) == 4
    assert path.stat().st_size == 4 * 116
    assert [frame.number for frame in intact_records(log.folder, 0)] == [1, 3, 4]
