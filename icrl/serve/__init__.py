"""The loop as a service: OpenAI's two protocols, a page for people, and the same prompts, tools and limits as training.

config       what can be set                        service      the agent, who may use it, reload and drain
problem      errors as the protocols write them     narration    what happens in a run, as a reader is told
app          routes, in one place                   stream       server-sent events
"""
