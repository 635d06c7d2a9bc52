"""What `icrl COMMAND` does, one command a module."""
