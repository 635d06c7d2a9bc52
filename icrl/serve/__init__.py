"""The loop as a service."""
