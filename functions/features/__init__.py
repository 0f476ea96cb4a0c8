"""Features as functions: build training sets and bring features online."""
