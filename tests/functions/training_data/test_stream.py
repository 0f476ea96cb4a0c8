"""Streams: the samples of an epoch once over all workers, in one order, and the same after a kill with other workers."""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.functions.training_data.sets import opened, samples
from toque.functions.training_data import (
    DecodeImages,
    Mixture,
    OpenSet,
    Reading,
    SampleSetError,
    SampleStream,
    SetSource,
    ShardCache,
    Share,
    Shuffle,
    write_samples,
)
from toque.functions.training_data.jobs import encode_png
from toque.registry import open_store

ROWS = 157


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(f"file://{tmp_path_factory.mktemp('samples')}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return ShardCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def sources(store, cache):
    shuffle = Shuffle(seed=4, shards_at_once=2, block_rows=4, buffer_rows=30)
    sets = [
        opened(store, "one", ROWS, shuffle=shuffle),
        opened(store, "two", 60, first=1_000, shuffle=shuffle),
    ]
    made = {
        "set": SetSource(sets[0], cache),
        "mixture": Mixture(sets, [3, 1], seed=2, epoch_rows=ROWS, cache=cache),
    }
    yield made
    for source in made.values():
        source.close()


def read(source, reading, *, share=None, position=0, stop=None):
    with SampleStream(source, reading, share=share or Share(), position=position, stop=stop) as stream:
        return list(stream)


def merged(source, reading, *, workers, position=0, stop=None):
    """Samples of all workers in the global order, by their field."""
    batches = [
        read(source, reading, share=Share(rank, workers), position=position, stop=stop)
        for rank in range(workers)
    ]
    found: list[int] = []
    for step in zip(*batches, strict=True):
        own = [batch.columns["number"].tolist() for batch in step]
        found += [own[at % workers][at // workers] for at in range(sum(map(len, own)))]
        assert len({batch.position for batch in step}) == 1
    return found


@given(st.integers(7, 60), st.integers(1, 4), st.sampled_from(["set", "mixture"]), st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_is_that_of_one_worker_whatever_the_number_and_where_it_resumes(
    sources, batch_rows, workers, kind, data
):
    source, total = sources[kind], ROWS + 50
    expected = merged(source, Reading(25), workers=1, stop=total)
    position = data.draw(st.integers(0, total))
    first = merged(source, Reading(batch_rows), workers=workers, stop=position)
    others = data.draw(st.integers(1, 4))
    rest = merged(
        source, Reading(data.draw(st.integers(7, 60))), workers=others, position=position, stop=total
    )
    assert first + rest == expected


def test_each_epoch_has_every_sample_once_and_another_order(sources):
    found = merged(sources["set"], Reading(20), workers=3, stop=3 * ROWS)
    epochs = [found[at * ROWS : (at + 1) * ROWS] for at in range(3)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_last_samples_too_few_for_a_batch_are_dropped_if_asked(sources):
    batches = read(sources["set"], Reading(20, last="drop"), stop=2 * ROWS)
    assert [len(batch) for batch in batches] == [20] * 14
    assert [batch.position for batch in batches[6:8]] == [140, ROWS + 20]
    with pytest.raises(ValueError, match="leaves nothing of an epoch of 157 samples"):
        SampleStream(sources["set"], Reading(200, last="drop"))


def test_all_fields_come_with_their_sample(sources):
    for batch in read(sources["mixture"], Reading(32), stop=ROWS):
        numbers = batch.columns["number"].tolist()
        assert batch.columns["vector"].tolist() == [[number] * 3 for number in numbers]
        assert batch.columns["text"].tolist() == [f"sample {number}" for number in numbers]
        assert batch.columns["data"].tolist() == [bytes([n % 251]) * (n % 7) for n in numbers]


def test_a_mixture_has_its_shares(store, cache):
    sets = [opened(store, "left", 50), opened(store, "right", 50, first=1_000)]
    mixture = Mixture(sets, [9, 1], seed=0, cache=cache)
    found = merged(mixture, Reading(64), workers=2, stop=4_096)
    assert sum(number >= 1_000 for number in found) == pytest.approx(409.6, abs=1)
    mixture.close()
    with pytest.raises(SampleSetError, match="2 sets with 1 weights"):
        Mixture(sets, [1])


def test_samples_are_decoded_by_threads_in_their_order(store, cache):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 6, 5, 3), dtype=np.uint8)
    table = samples(40).set_column(3, "data", [[encode_png(each) for each in pixels]])
    shuffle = Shuffle(block_rows=3)
    source = SetSource(OpenSet.of(store, write_samples(store, "pictures", [table]), shuffle=shuffle), cache)
    threads = set()

    def decode(columns):
        threads.add(threading.current_thread().name)
        return DecodeImages("data")(columns)

    with SampleStream(source, Reading(16, threads=3), decode=decode, stop=40) as stream:
        for batch in stream:
            assert np.array_equal(batch.columns["data"], pixels[batch.columns["number"]])
    assert all(name.startswith("toque-samples") for name in threads)
    grey = DecodeImages("data", size=(3, 4), channels=1)(source.take(np.arange(2)))
    assert grey["data"].shape == (2, 3, 4, 1)
    assert DecodeImages("data", size=(3, 4))(source.take(np.arange(0)))["data"].shape == (0, 3, 4, 3)
    with pytest.raises(SampleSetError, match="sample 0 is no picture"):
        DecodeImages("text")(source.take(np.arange(2)))
    source.close()


def test_a_failing_store_is_told_and_asked_again(store, tmp_path, monkeypatch):
    source = SetSource(opened(store, "gone", 30, shards=1), ShardCache(tmp_path))
    download = type(store).download
    monkeypatch.setattr(type(store), "download", lambda *_: (_ for _ in ()).throw(OSError("away")))
    with SampleStream(source, Reading(10)) as stream, pytest.raises(OSError, match="away"):
        next(stream)
    monkeypatch.setattr(type(store), "download", download)
    assert len(read(source, Reading(10), stop=30)) == 3
    source.close()


def test_a_share_and_a_reading_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="rank=2 must be from 0 to workers=2"):
        Share(2, 2)
    with pytest.raises(ValueError, match="threads=0 of a stream must be 1 or more"):
        Reading(5, threads=0)
