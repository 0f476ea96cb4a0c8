"""Routes of features: rows pushed, read by entity, and searched by vector."""
