"""Data quality of logged requests: broken feeds, changed units, and the incidents they open."""

from typing import TYPE_CHECKING

from functions.renamed import moved_names

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = moved_names(__name__, "functions.monitoring.quality.monitor")
