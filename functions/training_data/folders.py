"""Samples of folders: pictures sorted into folders by their class, texts tokenized and packed, and WebDataset tars."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.training_data.errors import SampleSetError
from toque.functions.training_data.formats import TarShard

Tokenize = Callable[[str], Sequence[int]]
_FILES_AT_ONCE = 256
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def images_of(folder: Path) -> Iterator[pa.Table]:
    """Read the pictures of a folder with a folder for each class, in order of their names, as they are encoded.

    Fields: `image` (bytes), `label` (number of the class, in order of names), `name`. Raises: SampleSetError if there are none.
    """
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in _PICTURES)
    if not files:
        raise SampleSetError(
            f"{folder} has no pictures in folders named by class, such as {folder}/cat/1.jpg"
        )
    classes = sorted({path.parent.name for path in files})
    for start in range(0, len(files), _FILES_AT_ONCE):
        some = files[start : start + _FILES_AT_ONCE]
        yield pa.table(
            {
                "image": pa.array([path.read_bytes() for path in some], pa.binary()),
                "label": pa.array([classes.index(path.parent.name) for path in some], pa.int64()),
                "name": [f"{path.parent.name}/{path.name}" for path in some],
            }
        )


def texts_of(folder: Path, pattern: str = "**/*.txt") -> Iterator[str]:
    """Read the texts of a folder, in order of their names."""
    for path in sorted(folder.glob(pattern)):
        yield path.read_text()


def tars_of(paths: Sequence[Path]) -> Iterator[pa.Table]:
    """Read the samples of WebDataset tars, each tar at once."""
    for path in paths:
        shard = TarShard(path)
        yield pa.table(
            {name: pa.array(list(values)) for name, values in shard.take(np.arange(shard.rows)).items()}
        )


def packed(
    texts: Iterable[str], tokenize: Tokenize, *, length: int, end: int, dtype: str = "int32"
) -> Iterator[pa.Table]:
    """Tokenize texts and pack them into samples of `length` tokens, `end` behind each text; what is left at the end is dropped.

    Fields: `tokens` (length,) and `position` (length,), of each token in its own text, by which attention can be kept within texts.
    Raises: ValueError if a token does not fit `dtype`.
    """
    limit = np.iinfo(dtype)
    waiting: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    have = 0
    for text in texts:
        tokens = np.append(np.fromiter(tokenize(text), dtype=np.int64), end)
        if tokens.min() < limit.min or tokens.max() > limit.max:
            raise ValueError(f"token {tokens.max()} does not fit dtype={dtype!r}; pass a larger one")
        waiting.append(tokens)
        places.append(np.arange(len(tokens)))
        have += len(tokens)
        if have >= length * _FILES_AT_ONCE:
            whole = have // length
            yield _samples(np.concatenate(waiting), np.concatenate(places), whole, length, dtype)
            waiting, places = (
                [np.concatenate(waiting)[whole * length :]],
                [np.concatenate(places)[whole * length :]],
            )
            have -= whole * length
    if have >= length:
        yield _samples(np.concatenate(waiting), np.concatenate(places), have // length, length, dtype)


def _samples(
    tokens: npt.NDArray[np.int64], places: npt.NDArray[np.int64], count: int, length: int, dtype: str
) -> pa.Table:
    def column(values: npt.NDArray[np.int64], kind: str) -> pa.Array:
        flat = pa.array(values[: count * length].astype(kind))
        return pa.FixedSizeListArray.from_arrays(flat, length)

    return pa.table({"tokens": column(tokens, dtype), "position": column(places, "int32")})


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels (height, width, channels) or (height, width) without loss."""
    from PIL import Image  # late: few processes write pictures

    target = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(target, "PNG")
    return target.getvalue()
