"""Reading of the log's tables: predictions, labels and both joined. It must not know how they came there."""
