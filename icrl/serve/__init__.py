"""The loop as a service: the name is reserved; this version holds nothing here."""
