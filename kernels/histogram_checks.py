"""Checks of the arguments that all histogram implementations share."""

from typing import Any


def check_histogram(values: Any, edges: Any) -> None:
    """Raise ValueError unless values [rows, columns] and edges [columns, bins + 1] fit together."""
    if values.ndim != 2 or edges.ndim != 2:  # noqa: PLR2004 - a matrix has two axes
        raise ValueError(
            f"histogram takes values [rows, columns] and edges [columns, bins + 1], got {tuple(values.shape)} "
            f"and {tuple(edges.shape)}; reshape one column to [rows, 1]"
        )
    if edges.shape[0] != values.shape[1] or edges.shape[1] < 2:  # noqa: PLR2004 - one bin has two edges
        raise ValueError(
            f"values have {values.shape[1]} columns, edges are {tuple(edges.shape)}; "
            "give each column its row of at least two edges"
        )
    ascending = (edges[:, 1:] >= edges[:, :-1]).all(1)
    if not bool(ascending.all()):
        column = int((~ascending).nonzero()[0][0])
        raise ValueError(f"edges of column {column} are not ascending numbers: {edges[column].tolist()}")
