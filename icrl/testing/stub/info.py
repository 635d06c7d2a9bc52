"""What a server says about itself: model, settings, health, load, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from icrl.testing.stub.live import Sampler

__all__ = ["About"]

_COUNTED = {
    "generation_tokens": ',is_streaming="false"',
    "prompt_tokens": ',is_streaming="false"',
    "cached_tokens": ',cache_source="device"',
}
"""Further labels of a counter."""


@dataclass(slots=True, eq=False, kw_only=True)
class About:
    """A server's facts, in the shapes of its version."""

    sampler: Sampler
    """Its state."""
    version: str
    """Version of SGLang that it says it is."""
    model_path: str
    """The model's directory."""
    context_limit: int
    """Tokens of prompt plus generation."""
    kv_tokens: int
    """Tokens whose keys and values fit into its memory."""
    metrics: bool
    """Whether it was started with metrics."""
    incremental: bool
    """Whether streams are incremental."""
    loras: int | None = None
    """How many LoRA adapters it takes; none where it was started without them."""

    def routes(self, release: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
        """Return what answers each path, for a version."""
        routes: dict[str, Callable[[], Any]] = {
            "/model_info": self.model,
            "/get_model_info": self.model,
            "/server_info": self.server,
            "/get_server_info": self.server,
            "/v1/models": self.models,
            "/v1/loads": self.loads,
        }
        if release < (0, 5, 21):
            routes["/get_weight_version"] = self.weight_version
            routes["/get_load"] = lambda: [self._load()]
        return routes

    def model(self) -> dict[str, Any]:
        """`/model_info`."""
        return {
            "model_path": self.model_path,
            "served_model_name": self.model_path,
            "tokenizer_path": self.model_path,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": self.sampler.version,
            "load_format": "auto",
            "disaggregation_mode": "null",
            "model_type": "scripted",
            "architectures": ["ScriptedForCausalLM"],
        }

    def server(self) -> dict[str, Any]:
        """`/server_info`."""
        return {
            "model_path": self.model_path,
            "tokenizer_path": self.model_path,
            "served_model_name": self.model_path,
            "device": "cpu",
            "dtype": "float32",
            "context_length": None,
            "tp_size": 1,
            "dp_size": 1,
            "weight_version": self.sampler.version,
            "enable_metrics": self.metrics,
            "incremental_streaming_output": self.incremental,
            "stream_interval": 1,
            "disable_radix_cache": False,
            "enable_lora": self.loras is not None or None,
            "max_loaded_loras": self.loras,
            "max_loras_per_batch": self.loras or 8,
            "max_running_requests": self._limit(),
            "status": "ready",
            "max_total_num_tokens": self.kv_tokens,
            "max_req_input_len": self.context_limit - 6,
            "internal_states": [{"effective_max_running_requests_per_dp": self._limit()}],
            "version": self.version,
        }

    def models(self) -> dict[str, Any]:
        """`/v1/models`."""
        model = {
            "id": self.model_path,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "sglang",
            "root": self.model_path,
            "parent": None,
            "max_model_len": self.context_limit,
        }
        return {"object": "list", "data": [model]}

    def weight_version(self) -> dict[str, Any]:
        """`/get_weight_version`, which left with 0.5.21."""
        return {"weight_version": self.sampler.version}

    def loads(self) -> dict[str, Any]:
        """`/v1/loads`."""
        return {"timestamp": time.time(), "version": self.version, "num_accelerators": 1, "loads": [self._load()]}

    def text(self) -> str:
        """`/metrics`; as there, a counter that was never raised is absent."""
        engine = f'engine_type="unified",model_name="{self.model_path}"'
        load = self._load()
        values = {
            "num_running_reqs": load["num_running_reqs"],
            "num_queue_reqs": load["num_waiting_reqs"],
            "num_used_tokens": load["num_used_tokens"],
            "token_usage": load["token_usage"],
            "max_total_num_tokens": self.kv_tokens,
            "context_len": self.context_limit,
        }
        ranks = f'{engine},moe_ep_rank="0",pp_rank="0",tp_rank="0"'
        gauges = [("gauge", name, ranks, value) for name, value in values.items()]
        totals = self.sampler.totals.items()
        counts = [("counter", f"{name}_total", engine + _COUNTED.get(name, ""), n) for name, n in totals if n]
        return "".join(
            f"# HELP sglang:{name} Described.\n# TYPE sglang:{name} {kind}\nsglang:{name}{{{labels}}} {float(value)}\n"
            for kind, name, labels, value in (*gauges, *counts)
        )

    def _load(self) -> dict[str, Any]:
        batch = self.sampler.batch
        used = sum(len(live.asked.ids) + live.job.produced for live in self.sampler.live.values())
        return {
            "timestamp": time.monotonic(),
            "dp_rank": 0,
            "num_running_reqs": batch.running,
            "num_waiting_reqs": batch.waiting,
            "num_waiting_uncached_tokens": 0,
            "num_used_tokens": used,
            "num_total_tokens": used,
            "max_total_num_tokens": self.kv_tokens,
            "max_running_requests": self._limit(),
            "token_usage": round(min(1.0, used / self.kv_tokens), 4),
            "gen_throughput": 0.0,
            "cache_hit_rate": 0.0,
            "utilization": 0.0,
            "queues": {"waiting": batch.waiting, "paused": batch.running if self.sampler.paused else 0},
        }

    def _limit(self) -> int:
        capacity = self.sampler.batch.capacity
        return (capacity.max_running if capacity else None) or 4096
