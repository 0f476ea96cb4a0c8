"""Casts of columns to the types of fields, without loss; every error names column, value and remedy."""

from toque.featurestore.definitions.casting.columns import cast_column, microsecond_utc

__all__ = ["cast_column", "microsecond_utc"]
