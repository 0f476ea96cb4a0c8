"""The online feature store: packed rows in Redis, written newest-wins and read in one round trip."""
