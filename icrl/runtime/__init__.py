"""The loop: prompts, dialects, engines, tools, the agent and the rollout scheduler. Never imports a trainer."""
