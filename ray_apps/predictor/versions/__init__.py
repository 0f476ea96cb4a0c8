"""The versions of a model in a replica: loaded, warmed, batched, routed and scored."""
