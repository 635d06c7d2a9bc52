"""Ways of writing tool use down: how prompts, calls, observations and answers look as text and tokens."""
