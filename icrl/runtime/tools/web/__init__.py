"""The web as tools: searching it through providers, and reading pages behind a gate."""
