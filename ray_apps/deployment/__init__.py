"""Brings the platform up on a cluster: starts Ray on a node, checks it, deploys the applications, shuts them down."""
