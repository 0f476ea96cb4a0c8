"""Vectors of texts: their character trigrams and words, hashed into a fixed width."""

from collections.abc import Sequence

import numpy as np

from toque.functions.stats.moments import Floats
from toque.kernels import hash_strings

__all__ = ["text_vectors"]


def text_vectors(texts: Sequence[str | None], *, width: int = 256) -> Floats:
    """Compute vectors (texts, width) of length 1, or 0 where a text is missing or empty.

    Each trigram within a word, its ends marked, and each word counts once a text with a sign of its hash, so that those that
    share a cell cancel on average. Two samples of texts that are about other things, in another language or of another length
    have other vectors.
    Source: Weinberger et al., Feature hashing for large scale multitask learning, 2009.
    """
    if width < 2:  # noqa: PLR2004 - one cell holds nothing
        raise ValueError(f"width={width} must be at least 2")
    pieces = [sorted(_pieces(text)) for text in texts]
    flat = [piece for each in pieces for piece in each]
    found = np.zeros((len(pieces), width))
    if flat:
        hashes = hash_strings(flat).view(np.uint64)
        row = np.repeat(np.arange(len(pieces)), [len(each) for each in pieces])
        sign = np.where(hashes >> np.uint64(63), 1.0, -1.0)
        np.add.at(found, (row, (hashes % np.uint64(width)).astype(np.int64)), sign)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(length > 0, length, 1.0)


def _pieces(text: str | None) -> set[str]:
    if text is None:
        return set()
    words = text.casefold().split()
    marked = [f"^{word}$" for word in words]
    return {word[at : at + 3] for word in marked for at in range(max(len(word) - 2, 1))} | set(marked)
