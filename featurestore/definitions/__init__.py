"""What features are: entities, fields, views, services, their types, and how one row becomes bytes."""
