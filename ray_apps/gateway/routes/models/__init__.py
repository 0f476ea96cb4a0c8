"""Routes of models: the model and its aliases, its versions and their reviews, traffic, and layers of experiments."""
