"""An HTTP server that speaks SGLang's protocol, with faults and a capacity: `SGLangStub`."""

from __future__ import annotations

from icrl.testing.stub.capacity import Capacity
from icrl.testing.stub.faults import Fault, Faults
from icrl.testing.stub.live import Asked
from icrl.testing.stub.process import run_stub
from icrl.testing.stub.server import SGLangStub
from icrl.testing.stub.weights import Update

__all__ = ["Asked", "Capacity", "Fault", "Faults", "SGLangStub", "Update", "run_stub"]
