"""TRL's own synchronous tool loop, `GRPOTrainer._tool_call_loop`, on the engine and tools of the benchmark.

The method is TRL's, on an object that has what it reads of a trainer. Replaced is `_generate_single_turn` alone: it
asks the engine for the whole batch at once and waits for it, as TRL's own does.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

from rollouts_work import SAMPLING, Scene, SlowTool, prompt_ids_of

from icrl.runtime.engines.protocol import Engine
from icrl.runtime.tools.tool import ToolSpec
from icrl.trajectory import Generation

LONGEST = 1_000_000


def prepare() -> None:
    """Import what TRL needs, which takes seconds."""
    importlib.import_module("trl.trainer.grpo_trainer")


class TrlLoop:
    """What the loop reads of a trainer.

    Args:
        scene: The trajectories.
        engine: An open engine.
        loop: The event loop that the engine belongs to; it runs in another thread.
    """

    def __init__(self, scene: Scene, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._scene, self._engine, self._rounds = scene, engine, 0
        self.async_loop = loop
        self.processing_class = self._tokenizer = _tokenizer(scene)
        self.chat_template, self.chat_template_kwargs = None, {}
        self._is_vlm, self.use_vllm, self.environment_factories = False, False, None
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=LONGEST))
        self.max_completion_length, self.max_tool_calling_iterations = LONGEST, LONGEST
        self.tools = [_schema(tool.spec) for tool in scene.work.tools]
        functions = {tool.spec.name: _function(tool) for tool in scene.tools()}
        self._sync_tool_dicts = [{} for _ in scene.courses]
        self._async_tool_dicts = [functions] * len(scene.courses)

    def run(self) -> list[list[int]]:
        """Roll out every trajectory and return its response, the tools' tokens included."""
        from trl.chat_template_utils import parse_response
        from trl.trainer.grpo_trainer import GRPOTrainer

        self._get_tool_suffix_ids = MethodType(GRPOTrainer._get_tool_suffix_ids, self)
        prompts = [[{"role": "user", "content": episode.task.query}] for episode in self._scene.work.episodes]
        prompt_ids = [prompt_ids_of(self._scene.work, episode.task) for episode in self._scene.work.episodes]
        completion_ids, logprobs = self._generate_single_turn(prompt_ids)
        completions = [
            [parse_response(self._tokenizer, ids, prefix=prompt, tools=self.tools)]
            for ids, prompt in zip(completion_ids, prompt_ids, strict=True)
        ]
        _, _, completion_ids, *_ = GRPOTrainer._tool_call_loop(
            self, prompts, prompt_ids, completion_ids, completions, logprobs, None, {}
        )
        return completion_ids

    def _generate_single_turn(
        self, prompt_ids: Sequence[list[int]], *_: object, **__: object
    ) -> tuple[list[list[int]], list[list[float]]]:
        replies = asyncio.run_coroutine_threadsafe(self._batch(prompt_ids), self.async_loop).result()
        return [[*reply.ids] for reply in replies], [[*reply.logprobs] for reply in replies]

    async def _batch(self, prompt_ids: Sequence[list[int]]) -> list[Generation]:
        self._rounds += 1
        requests = (
            self._engine.generate(ids, SAMPLING, request_id=f"trl-{self._rounds}-{index}")
            for index, ids in enumerate(prompt_ids)
        )
        return await asyncio.gather(*requests)


def _tokenizer(scene: Scene) -> Any:
    """Open the vocabulary as TRL does, with the chat template that it knows how to parse."""
    from transformers import PreTrainedTokenizerFast
    from trl.chat_template_utils import add_response_schema, qwen2_5_chat_template

    vocabulary = str(Path(scene.work.tokenizer.name) / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=vocabulary, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = qwen2_5_chat_template
    return add_response_schema(tokenizer)


def _schema(spec: ToolSpec) -> dict[str, Any]:
    function = {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)}
    return {"type": "function", "function": function}


def _function(tool: SlowTool) -> Callable[..., Awaitable[str]]:
    async def function(**arguments: Any) -> str:
        return await tool(arguments)

    return function
