"""A reward as a user would write one."""


def length(trajectory, task):
    return len(trajectory.response_text) / 100
