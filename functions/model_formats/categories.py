"""Vocabulary of categorical columns beside a model that takes numbers only: each text becomes its place in a list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from toque.functions.model_formats.errors import ArtifactRefused

CATEGORIES_FILE = "categories.json"


@dataclass(frozen=True, slots=True)
class Categories:
    """Known texts by column; one that is missing or not among them is NaN to the model."""

    columns: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(
        cls, columns: Sequence[str], texts: npt.NDArray[Any], *, min_rows: int = 1, most: int = 10_000
    ) -> Self:
        """Collect the texts (rows, columns) that occur in `min_rows` rows, the `most` frequent ones, sorted."""
        found = {}
        for place, name in enumerate(columns):
            known = [text for text in texts[:, place].tolist() if text is not None]
            values, counts = np.unique(np.array(known, dtype=np.str_), return_counts=True)
            frequent = np.flatnonzero(counts >= min_rows)
            kept = frequent[np.argsort(-counts[frequent], kind="stable")[:most]]
            found[name] = tuple(sorted(values[kept].tolist()))
        return cls(found)

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Read the file in a model's folder, or None if there is none. Raises: ArtifactRefused if it is not one."""
        path = folder / CATEGORIES_FILE
        if not path.is_file():
            return None
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not all(
            isinstance(texts, list) and all(isinstance(text, str) for text in texts)
            for texts in found.values()
        ):
            raise ArtifactRefused(f"{CATEGORIES_FILE} must hold lists of texts by column")
        return cls({name: tuple(texts) for name, texts in found.items()})

    def save(self, folder: Path) -> None:
        """Write the file into a model's folder."""
        (folder / CATEGORIES_FILE).write_text(
            json.dumps({n: list(texts) for n, texts in self.columns.items()})
        )

    def codes(self, names: Sequence[str], texts: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Convert texts (rows, columns) to places in the lists, as float32; NaN for what is not known."""
        out = np.full(texts.shape, np.nan, dtype=np.float32)
        for column, name in enumerate(names):
            place = {text: float(index) for index, text in enumerate(self.columns[name])}
            out[:, column] = [place.get(text, np.nan) for text in texts[:, column]]
        return out
