"""Things that generate tokens."""
