"""What is read and changed of single resources: models, traffic, runs and invocations, each function at a route of its own."""
