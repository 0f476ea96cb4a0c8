"""Writing of the log: write-ahead files, their way to Redis and into the tables. It must not read tables for anybody."""
