"""Definitions of features: entities, fields, views, services, their types, and the encoding of a row."""
