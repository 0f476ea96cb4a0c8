"""Access: tokens with roles, and signatures of model versions."""
