"""Training of a user's own network, described as a recipe of the project."""
