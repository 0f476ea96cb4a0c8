"""kill -9 of everything that stands between an answer and its row."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.functions.prediction_log.logbook import all_rows
from tests.waiting import until
from toque.functions.prediction_log import drain
from toque.registry import open_store

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from toque.functions.prediction_log import LogWriter, encode_prediction
log = LogWriter(Path(sys.argv[1]), "predictions", sys.argv[2], poll_s=0.005, tidy_every_s=0.1, segment_bytes=50_000)
vector, out = np.zeros((1, 20), np.float32), np.zeros((1, 1), np.float32)
for i in range(int(sys.argv[4])):
    name = f"{sys.argv[3]}-{i}"
    log.append(encode_prediction(
        id=name, model="late", version=1, arm="champion", shadow=False, unit=None, at_us=1367409600000000 + i,
        latency_ms=1.0, rows=1, numeric=vector, categorical=None, outputs=out))
    print(name, flush=True)
    time.sleep(0.0002)
log.close(timeout_s=30)
"""
DRAINER = """
import sys
from pathlib import Path
from toque.functions.prediction_log import drain
from toque.registry import open_store
import redis
while True:
    try:
        drain(open_store(sys.argv[1]), sys.argv[2], wal_root=Path(sys.argv[3]))
    except redis.RedisError:
        pass
"""


class Child:
    """A child process whose printed lines are collected."""

    def __init__(self, code: str, *args: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.lines.append(line.strip())
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        self.process.wait()
        self._thread.join()


@pytest.mark.slow
def test_kill_9_of_writers_redis_and_drain_keeps_every_acknowledged_prediction_once(
    tmp_path: Path, wal_root: Path, redis_server: Any
):
    store_url = f"file://{tmp_path}/store"
    rng = random.Random(7)
    writers = [Child(WRITER, wal_root, redis_server.url, f"w{i}", 3_000) for i in range(3)]
    for _ in range(2):
        drainer = Child(DRAINER, store_url, redis_server.url, wal_root)
        goals = [len(writer.lines) + rng.randrange(400, 800) for writer in writers[1:]]
        for writer, goal in zip(writers[1:], goals, strict=True):
            until(lambda writer=writer, goal=goal: len(writer.lines) >= min(goal, 3_000), within_s=90)
        drainer.kill()
        redis_server.kill()
        writers[0].kill()  # in the second round it is dead already: its file is an orphan
        time.sleep(rng.uniform(0.0, 0.4))
        redis_server.start()
    writers[1].kill()
    writers[2].wait()
    for _ in range(2):
        drain(open_store(store_url), redis_server.url, wal_root=wal_root)
    counts = Counter(all_rows(open_store(store_url))["prediction_id"].to_pylist())
    acknowledged = {name for writer in writers for name in writer.lines}
    assert len(acknowledged) > 3_000 + 2 * 400
    assert [name for name, count in counts.items() if count != 1] == []
    assert acknowledged - counts.keys() == set()
    assert len(counts.keys() - acknowledged) <= 2  # written, killed before the acknowledgement
