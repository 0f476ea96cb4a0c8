"""Access tokens with roles, and cryptographic signatures of model versions."""
