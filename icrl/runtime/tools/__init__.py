"""Things that a model may call."""
