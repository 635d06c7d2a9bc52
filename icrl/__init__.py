"""An asyncio agent runtime with token-exact trajectories, and reinforcement learning of tool use on top of it."""

__version__ = "0.1.0"
