"""What samples during a training run: an engine in this process, or SGLang servers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from anyio.from_thread import BlockingPortal

from icrl.errors import EngineError
from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig
from icrl.runtime.engines.protocol import Engine, WeightSink
from icrl.runtime.engines.trainable import require_trainable
from icrl.tokenizer import ChatTokenizer
from icrl.train.config import TrainConfig
from icrl.trajectory import Trajectory

if TYPE_CHECKING:
    from icrl.runtime.engines.sglang.launch import LaunchedServer

__all__ = ["Fate", "TrainedEngine", "open_engine", "require_some"]

SERVER_LOG = "server.log"
"""File of the run directory with what a server says that was started for the run."""


class TrainedEngine(Engine, WeightSink, Protocol):
    """An engine that takes weights."""


class Fate:
    """What became of an engine that nobody brings back, such as a server that was started for this run."""

    def __init__(self) -> None:
        self.error: EngineError | None = None
        """How it ended; `None` while it lives."""

    def check(self) -> None:
        """Pass while the engine lives.

        Raises:
            EngineError: It is gone for good.
        """
        if self.error is not None:
            raise self.error


def open_engine(
    config: TrainConfig,
    directory: Path,
    run_directory: Path,
    tokenizer: ChatTokenizer,
    portal: BlockingPortal,
    stack: ExitStack,
) -> tuple[TrainedEngine, Fate]:
    """Open the engine that the configuration names; the stack closes it.

    Args:
        config: The run's configuration.
        directory: The model that is trained.
        run_directory: Where the log of a server is written that is started here.
        tokenizer: Its tokenizer.
        portal: Leads into the event loop's thread.
        stack: Closes what is opened here.

    Raises:
        ConfigError: The servers run another model, or cannot be trained against.
        EngineError: A server does not answer, or did not start.
    """
    if config.engine == "local":
        engine_config = LocalEngineConfig(model=str(directory), dtype=config.engine_dtype, threads=config.torch_threads)
        local = LocalEngine(engine_config, tokenizer=tokenizer)
        stack.callback(portal.call, local.aclose)
        portal.call(local.start)
        return local, Fate()
    if config.engine != "sglang":
        return _connected(config, config.engine, tokenizer, portal, stack), Fate()
    server = _started(config, directory, run_directory / SERVER_LOG, portal, stack)
    engine, fate = _connected(config, server.address, tokenizer, portal, stack), Fate()
    watching = portal.start_task_soon(_watch, server, engine, fate)
    stack.callback(watching.cancel)
    return engine, fate


def require_some(trajectories: Sequence[Trajectory], what: str, engine: Engine) -> None:
    """Refuse results that say nothing about the model, as the infrastructure failed every time.

    Args:
        trajectories: What was rolled out.
        what: For whom.
        engine: What they were sampled from.

    Raises:
        EngineError: All of them failed.
    """
    errors = [t.error for t in trajectories if t.error is not None]
    if errors and len(errors) == len(trajectories):
        first = f"{errors[0].kind}: {errors[0].message}"
        raise EngineError(
            f"{what}: all {len(errors)} trajectories failed; the first with {first}", engine=engine.info.name
        )


def _started(
    config: TrainConfig, directory: Path, log: Path, portal: BlockingPortal, stack: ExitStack
) -> LaunchedServer:
    """Start a server for this run."""
    from icrl.runtime.engines.sglang.launch import LaunchConfig, running

    launched = LaunchConfig(
        model=str(directory),
        cpu=not _has_cuda(),
        dtype=config.engine_dtype,
        log=log,
        lora_rank=config.lora.rank if config.sync.adapters == "lora" else 0,
        lora_targets=config.lora.targets,
    )
    return stack.enter_context(portal.wrap_async_context_manager(running(launched)))


async def _watch(server: LaunchedServer, engine: TrainedEngine, fate: Fate) -> None:
    """Give everybody back who waits for a server that has ended: it will not be started again."""
    code = await server.ended()
    fate.error = EngineError(
        f"the server of this run ended with code {code}; its log is {server.log}, which ends with:\n"
        f"{await server.tail()}",
        engine=server.address,
    )
    with suppress(EngineError):
        await engine.aclose()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _connected(
    config: TrainConfig, address: str, tokenizer: ChatTokenizer, portal: BlockingPortal, stack: ExitStack
) -> TrainedEngine:
    from icrl.runtime.engines.address import connect

    opened = partial(
        connect,
        address,
        tokenizer=tokenizer,
        transport=config.sync.transport,
        adapters=config.sync.adapters,
        pause_mode=config.sync.pause,
        verify=config.sync.verify,
    )
    pool, _ = portal.call(opened)
    stack.callback(portal.call, pool.aclose)
    require_trainable(pool)
    return pool
