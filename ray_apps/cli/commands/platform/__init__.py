"""Commands for the platform itself: machines, who may use it, functions, history and backup."""
