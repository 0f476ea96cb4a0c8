"""Commands for what models learn from and how: projects, training and its plans, runs, features and vectors."""
