"""The embedded model and world: a one-million-parameter base and a fictional corpus to learn search in."""
