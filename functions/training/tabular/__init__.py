"""Training of the built-in network for tables: encode, fit, calibrate, export, register."""

from typing import TYPE_CHECKING

from functions.renamed import moved_names

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = moved_names(__name__, "functions.training.tabular.train")
