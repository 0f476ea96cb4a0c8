"""Projects of users: each folder is a whole project that talks to the platform by its public names only."""
