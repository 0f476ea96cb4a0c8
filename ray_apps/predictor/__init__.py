"""The model server: the Open Inference Protocol v2 over the versions of the registry."""
