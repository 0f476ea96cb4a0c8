"""What every process of Ray Serve has here: its settings, HAProxy in front of it, replicas spread over nodes, and how one ends."""
