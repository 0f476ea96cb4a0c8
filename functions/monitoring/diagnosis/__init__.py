"""What stands behind an alarm: the slices, features and events that explain a loss."""
