"""SGLang as an engine: its native protocol, its weights, and how a server is started."""
