"""Export of every flight of 2013 with its features: `python -m examples.flights.table FILE` writes one Parquet file.

The file serves to compare learners on the example's data without the platform, as `load/benchmarks/training/tabular.py` does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.flights import data
from examples.flights import features as flight_features
from examples.flights.features import CATEGORICAL, FEATURES, NUMERIC, flight_delay
from examples.flights.prep import fill_view
from toque.featurestore import FeatureStore
from toque.registry import open_store


def flights_with_features(folder: Path) -> pa.Table:
    """Join features, label and time of every flight that landed; the offline tables are made in `folder`."""
    store = FeatureStore(open_store(folder.absolute().as_uri()), project="flights")
    store.apply(FEATURES)
    for view in flight_features.STORED:
        fill_view(store, view)
    entities = flight_features.entity_table(data.flights())
    landed = entities.filter(pc.is_valid(entities["late"]))
    rows = store.get_historical_features(landed, features=flight_delay.name).to_arrow()
    return rows.select([*NUMERIC, *CATEGORICAL, "late", "event_timestamp"])


def main() -> None:
    """Write the table to the file that is named on the command line."""
    with tempfile.TemporaryDirectory(prefix="flights-") as folder:
        table = flights_with_features(Path(folder))
    pq.write_table(table, sys.argv[1])
    sys.stdout.write(f"{table.num_rows} flights, {table.num_columns} columns: {sys.argv[1]}\n")


if __name__ == "__main__":
    main()
