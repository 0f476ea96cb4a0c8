"""Training of the built-in network for tables: encode, fit, calibrate, export, register."""
