"""Processes that can be killed: for work that may hang, crash or eat memory.

pool      `Workers`: requests wait in line for a process, until their deadline
process   one process: started with nothing of ours but a socket, asked, killed, reaped
child     what runs in it
"""

from icrl.runtime.workers.pool import Workers
from icrl.runtime.workers.process import RemoteError, WorkerDied

__all__ = ["RemoteError", "WorkerDied", "Workers"]
