"""Loaders of MosaicML Streaming and webdataset on given samples: `python training_data.py streaming|webdataset write|read KIND FOLDER …`.

Run by an interpreter that has them, with numpy, Pillow and torch. `write FOLDER SAMPLES` turns a folder of `.bin` files, each with a
JPEG or 32-bit tokens, into the library's shards; `read FOLDER BATCH WORKERS EPOCHS` prints the samples per second of each epoch.
"""

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 64 << 20
WINDOW = 65_536  # samples that are shuffled among each other, as in ours


def pixels(data: bytes) -> Any:
    """Decode a picture to (height, width, 3) uint8."""
    from PIL import Image  # late: tokens need none

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def tokens(data: bytes) -> Any:
    """View bytes as 32-bit tokens."""
    return np.frombuffer(data, dtype=np.int32)


def write_streaming(kind: str, source: Path, folder: str) -> None:
    """Write the samples as MDS shards."""
    from streaming import MDSWriter

    encodings = {"image": {"image": "bytes", "label": "int"}, "text": {"tokens": "bytes"}}[kind]
    with MDSWriter(out=folder, columns=encodings, size_limit=SHARD_BYTES) as writer:
        for number, path in enumerate(sorted(source.glob("*.bin"))):
            data = path.read_bytes()
            writer.write({"image": data, "label": number} if kind == "image" else {"tokens": data})


def read_streaming(kind: str, folder: str, batch: int, workers: int) -> Iterator[int]:
    """Read an epoch in batches of tensors."""
    from streaming import StreamingDataLoader, StreamingDataset

    class Samples(StreamingDataset):  # type: ignore[misc]  # not installed where types are checked
        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return (
                (pixels(sample["image"]), sample["label"])
                if kind == "image"
                else tokens(sample["tokens"]).copy()
            )

    found = Samples(local=folder, shuffle=True, batch_size=batch, shuffle_block_size=WINDOW)
    loader = StreamingDataLoader(found, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield sum(len(each[0] if kind == "image" else each) for each in loader)


def write_webdataset(kind: str, source: Path, folder: str) -> None:
    """Write the samples as tars."""
    from webdataset import ShardWriter

    with ShardWriter(f"{folder}/%06d.tar", maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, path in enumerate(sorted(source.glob("*.bin"))):
            data = path.read_bytes()
            fields = {"jpg": data, "cls": str(number).encode()} if kind == "image" else {"bin": data}
            writer.write({"__key__": f"{number:08d}", **fields})


def read_webdataset(kind: str, folder: str, batch: int, workers: int) -> Iterator[int]:
    """Read an epoch in batches of tensors."""
    import torch
    import webdataset

    def decoded(sample: Any) -> Any:
        if kind == "image":
            return torch.from_numpy(pixels(sample["jpg"]).copy()), int(sample["cls"])
        return torch.from_numpy(tokens(sample["bin"]).copy())

    def stacked(samples: list[Any]) -> Any:
        return torch.utils.data.default_collate(samples)

    files = sorted(str(path) for path in Path(folder).glob("*.tar"))
    found = (
        webdataset.WebDataset(files, shardshuffle=100, empty_check=False)
        .shuffle(1_000)  # its samples are held in memory, so fewer than the others shuffle
        .map(decoded)
        .batched(batch, collation_fn=stacked)
    )
    loader = webdataset.WebLoader(found, batch_size=None, num_workers=min(workers, len(files)))
    while True:
        yield sum(len(each[0] if kind == "image" else each) for each in loader)


def main(library: str, what: str, kind: str, folder: str, *rest: str) -> None:
    """Write or read, as the command line says."""
    if what == "write":
        {"streaming": write_streaming, "webdataset": write_webdataset}[library](kind, Path(rest[0]), folder)
        return
    batch, workers, epochs = (int(each) for each in rest)
    read = {"streaming": read_streaming, "webdataset": read_webdataset}[library](kind, folder, batch, workers)
    for _ in range(epochs):
        begin = time.perf_counter()
        count = next(read)
        print(f"{count / (time.perf_counter() - begin):.1f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
