"""Every flight of 2013 with the features of its moment: `python -m examples.flights.table FILE` writes one Parquet file.

For whoever wants to compare learners on the example's data without the platform: `load/benchmarks/training.py` does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.flights import data
from examples.flights import features as kitchen
from examples.flights.features import CATEGORICAL, FEATURES, NUMERIC, flight_delay
from examples.flights.prep import FIRST_DAY
from featurestore import FeatureStore
from registry import open_store


def flights_with_features(folder: Path) -> pa.Table:
    """What the model reads, label and time of every flight that landed; the offline tables are made in `folder`."""
    store = FeatureStore(open_store(folder.absolute().as_uri()), project="flights")
    store.apply(FEATURES)
    flights = data.flights()
    store.write_offline(kitchen.airport_weather, kitchen.weather_rows(data.weather()))
    store.write_offline(kitchen.aircraft_facts, kitchen.aircraft_rows(known_from=FIRST_DAY))
    for view in kitchen.STORED:
        if view.source is not None:
            keys = [key.name for key in view.join_keys]
            store.write_offline(view, view.source.compute(kitchen.events(view, flights), keys=keys))
    asked = kitchen.entity_table(flights)
    landed = asked.filter(pc.is_valid(asked["late"]))
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
