"""The configuration of a training run: dataclasses from which the flags and the YAML file are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from icrl.errors import ConfigError, nearest
from icrl.runtime.engines.adapter import AdapterMode, unloadable
from icrl.runtime.engines.protocol import PauseMode
from icrl.runtime.rollout import RolloutPolicy
from icrl.runtime.settings import EMBEDDED, AgentSettings
from icrl.runtime.toolset import ToolingConfig
from icrl.tiny.worlds import find_world
from icrl.train.rewards.selection import REWARDS
from icrl.train.rows import AdvantageScale
from icrl.types import Limits

__all__ = [
    "EvaluationConfig",
    "LoraConfig",
    "LossConfig",
    "OptimizerConfig",
    "RewardWeights",
    "RolloutConfig",
    "SyncConfig",
    "TrainConfig",
]

QUESTION_REWARD = "question"
ENGINES = ("local", "sglang")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How trajectories are made."""

    prompts: int = 16
    """Tasks a step."""
    group_size: int = 8
    """Trajectories a task."""
    temperature: float = 1.0
    """Sampling temperature; the loss uses the same."""
    concurrency: int = 256
    """Trajectories in flight at most."""
    staleness: int = 0
    """Updates that the rollouts of a step may overlap; 0 rolls out and updates in turns."""
    oversample: float = 1.0
    """Tasks begun a step, as a multiple of `prompts`; the step is complete with the first `prompts` groups whose
    rewards differ, which favours short trajectories."""
    policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    """What becomes of trajectories that fail or stall, and of groups that teach nothing."""

    def __post_init__(self) -> None:
        _at_least(1, "rollout.prompts", self.prompts)
        _at_least(0, "rollout.staleness", self.staleness)
        if not self.oversample >= 1:
            raise ConfigError(f"rollout.oversample: must be >= 1, not {self.oversample}")
        _at_least(2, "rollout.group_size", self.group_size)
        _at_least(1, "rollout.concurrency", self.concurrency)
        if self.temperature <= 0:
            raise ConfigError(f"rollout.temperature: must be > 0 to explore, not {self.temperature}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """How weights get to engines of other processes, and how far the two may differ."""

    transport: Literal["disk", "tensor", "distributed"] = "disk"
    """Through a directory that trainer and servers share, through shared memory, or through a process group."""
    adapters: AdapterMode = "merged"
    """What is sent of a model with adapters (`--lora.rank`): whole weights with the adapter merged in, or the adapter
    by itself, `lora`, which SGLang servers load beside those that running requests use."""
    pause: PauseMode = "in_place"
    """What becomes of running requests: they go on, `retract` computes their keys and values again, `abort` ends."""
    verify: bool = False
    """Compare checksums after every update."""
    max_logprob_gap: float | None = 0.1
    """Largest mean difference (nats a token) between the engine's log-probabilities and the trainer's, on tokens
    sampled under the trainer's own weights; beyond it the run stops. `null` only measures."""

    def __post_init__(self) -> None:
        if self.max_logprob_gap is not None and not self.max_logprob_gap > 0:
            raise ConfigError(f"sync.max_logprob_gap: must be > 0 nats or null, not {self.max_logprob_gap}")
        if self.adapters == "lora" and self.transport != "disk":
            raise ConfigError(
                f"sync.transport: adapters travel as files, not by {self.transport!r}; leave it at disk, or merge them"
            )
        if self.adapters == "lora" and self.verify:
            raise ConfigError("sync.verify: servers give no checksums of adapters; leave it out, or merge them")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWeights:
    """What the built-in reward pays for."""

    exact_match: float = 0.9
    """Reward of an exact match."""
    format: float = 0.1
    """Reward of the whole response having the dialect's form."""
    call_penalty: float = 0.0
    """What every needless tool call takes off the reward of a right answer; 0 pays no attention to calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """What is minimised. Names and formulas are TRL's."""

    type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    """Loss; `dapo` averages over the tokens of the batch."""
    advantage: AdvantageScale = "none"
    """Whether advantages are divided by the group's standard deviation."""
    clip_low: float = 0.2
    """How far below 1 the ratio may move."""
    clip_high: float = 0.2
    """How far above 1 the ratio may move."""
    kl: float = 0.0
    """Weight of the KL term to the initial model; 0 also keeps uninformative groups out of the forward."""
    micro_batches: int = 1
    """Forwards that one step is split into."""
    activation_checkpointing: bool = False
    """Recompute activations to save memory."""

    def __post_init__(self) -> None:
        _at_least(1, "loss.micro_batches", self.micro_batches)
        if self.kl < 0:
            raise ConfigError(f"loss.kl: must be >= 0, not {self.kl}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW, with one schedule that continues across the stages of the curriculum."""

    learning_rate: float = 3e-4
    """Step size after warm-up; around 1e-6 suits models of several billion parameters."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ConfigError(f"optimizer.learning_rate: must be > 0, not {self.learning_rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters instead of full fine-tuning (arXiv 2106.09685)."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: float = 16.0
    """Scale of the adapters."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Modules that get an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """When and on how much the model is evaluated, always zero-shot and greedy."""

    every_steps: int = 10
    """Steps between interim evaluations; 0 evaluates at the start and the end only."""
    interim_tasks: int = 100
    """Held-out tasks of an interim evaluation."""
    tasks: int = 0
    """Held-out tasks of the first and last evaluation; 0 takes all."""


EMBEDDED_LIMITS = Limits(max_turns=3, max_tokens=96, max_tool_calls=2, max_observation_tokens=64, deadline_s=60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run. Without arguments: the embedded model learns to search."""

    world: Literal["search", "code", "mixed"] = "search"
    """Which embedded world to learn, without `--tasks`: looking facts up, arithmetic with Python, or both."""
    model: str | None = None
    """Hugging Face name or directory; the embedded model if not given."""
    engine: str = "local"
    """What samples: `local` (in this process), `sglang` (a server of its own is started for the run), or the address
    of running servers, such as `http://127.0.0.1:30000`; several are joined by commas."""
    tasks: Path | None = None
    """JSONL of `{question, answers}` to train on; those of `--world` if not given."""
    heldout: Path | None = None
    """JSONL to evaluate on; if not given, a tenth of `--tasks` is kept aside."""
    demos: Path | None = None
    """YAML or JSONL of demonstrations."""
    index: str | None = None
    """Directory of the search index (`icrl index` makes one), or the address of a retriever."""
    tools: tuple[str, ...] | None = None
    """`search`, `python`, `web:PROVIDER`, `fetch`, `mcp:SERVER`, `module:attribute`; by default those of `--world`."""
    hits: int = 2
    """Documents that a search shows."""
    hit_separator: str = " "
    """What stands between them."""
    reward: str = QUESTION_REWARD
    """How answers are matched: `question` (to the letter), `robust`, `f1`, `set`, `math`, `programs` (tests in the
    sandbox), each with the format by `--weights`; or `module:name` of your own."""
    dialect: Literal["xml", "hermes", "fence"] = "xml"
    """How calls and answers are written."""
    instruction: str | None = None
    """Replaces the dialect's instruction. It has to name the tags: a model cannot guess them zero-shot."""
    seed: int = 0
    """Decides tasks, demonstrations and sampling."""
    output_dir: Path | None = None
    """Where everything is written; `runs/<time>` if not given."""
    resume: Path | None = None
    """Run directory to continue."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""
    deterministic: bool = False
    """Float32 on one thread: a resumed run then ends equal to the bit."""
    schedule: str = "3:40,2:15,1:15,0:40"
    """Curriculum: `shots:steps` stages."""
    promote_at: float | None = 0.9
    """Mean exact match over `promote_window` steps that ends a stage early; `None` keeps stages to their length."""
    finish_at: float | None = 0.95
    """The same for the last stage, which ends the run; `None` takes `promote_at`."""
    promote_window: int = 5
    """Steps that the mean is taken over."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the trainer's forward (weights stay float32)."""
    engine_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the engine that samples."""
    threads: int | None = None
    """Torch threads of the trainer and of the engine; `None` lets each choose."""
    save_every: int = 20
    """Steps between checkpoints; 0 saves at the end only."""
    limits: Limits = EMBEDDED_LIMITS
    """When a trajectory has to end."""
    tooling: ToolingConfig = field(default_factory=ToolingConfig)
    """A cache of the tools' answers, or a journal of their calls."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How trajectories are made."""
    sync: SyncConfig = field(default_factory=SyncConfig)
    """How weights get to the engine."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """What the `question` reward pays for."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluations during training."""

    def __post_init__(self) -> None:
        rows = self.rollout.prompts * self.rollout.group_size
        if rows % self.loss.micro_batches:
            raise ConfigError(
                f"loss.micro_batches: {self.loss.micro_batches} does not divide the {rows} rows of a step"
                " (rollout.prompts x rollout.group_size)"
            )
        _at_least(1, "promote_window", self.promote_window)
        if self.engine not in ENGINES and not self.engine.startswith(("http://", "https://", "router:")):
            raise ConfigError(
                f"engine: {self.engine!r} is neither {' nor '.join(ENGINES)} nor an address such as "
                f"http://127.0.0.1:30000.{nearest(self.engine, ENGINES)}"
            )
        if self.deterministic:
            self._check_deterministic()
        if self.sync.adapters == "lora":
            self._check_adapters()
        if self.own_task and self.world != "search":
            raise ConfigError(f"world: --tasks replaces the world {self.world!r}; give one of the two")
        if self.own_task and "search" in self.tool_names and self.index is None:
            raise ConfigError("index: your own --tasks with the search tool need --index DIR (`icrl index` makes one)")

    def _check_deterministic(self) -> None:
        for name, wanted in (("precision", "float32"), ("engine_dtype", "float32"), ("threads", 1)):
            value = getattr(self, name)
            if value not in (wanted, None):
                raise ConfigError(f"{name}: deterministic runs need {wanted}, not {value}")
        if self.engine != "local":
            raise ConfigError(f"engine: deterministic runs need local, not {self.engine}")
        if self.rollout.staleness or self.rollout.oversample > 1:
            raise ConfigError("rollout.staleness, rollout.oversample: what they do depends on time; leave them out")

    def _check_adapters(self) -> None:
        if self.lora.rank < 1:
            raise ConfigError(
                "sync.adapters: lora sends an adapter, and none is trained; give one a rank: --lora.rank 16"
            )
        if self.engine == "local" or "router:" in self.engine:
            raise ConfigError(
                f"sync.adapters: lora needs SGLang servers, by --engine sglang or by their addresses, not {self.engine}"
            )
        if (why := unloadable(self.lora.targets)) is not None:
            raise ConfigError(f"lora.targets: {why}; name both, or merge them (sync.adapters)")

    @property
    def torch_threads(self) -> int | None:
        """Torch threads of trainer and engine; `None` lets each choose."""
        return 1 if self.deterministic else self.threads

    @property
    def own_task(self) -> bool:
        """Whether the user brought tasks; otherwise the embedded world is learnt."""
        return self.tasks is not None

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Tools that trajectories may call."""
        return find_world(self.world).tools if self.tools is None else self.tools

    def warnings(self) -> list[str]:
        """Say what is allowed but known to fail."""
        found = []
        told = self.instruction is None or "{tags}" in self.instruction or "<answer>" in self.instruction
        if self.dialect == "xml" and not told:
            found.append("instruction: it does not name the tags; a model trained so answers with examples only")
        if self.loss.advantage == "std" and self.reward in REWARDS and self.weights.format > 0:
            found.append(
                "loss.advantage: dividing by the standard deviation makes a small format reward as strong as the "
                "answer's; the policy may settle for the form"
            )
        if self.model is not None and self.limits == EMBEDDED_LIMITS:
            found.append(f"limits: {self.limits.max_tokens} response tokens suit the embedded model; choose your own")
        if self.model is not None and self.optimizer == OptimizerConfig():
            found.append(f"optimizer: learning rate {self.optimizer.learning_rate} suits the embedded model")
        return found

    def settings(self) -> AgentSettings:
        """Return what training, evaluation and serving must share; it is stored beside the weights."""
        searches = "search" in self.tool_names
        index = self._index() if self.index else EMBEDDED if searches else None
        return AgentSettings(
            dialect=self.dialect,
            instruction=self.instruction,
            tools=self.tool_names,
            index=index,
            hits=self.hits,
            hit_separator=self.hit_separator,
            limits=self.limits,
        )

    def _index(self) -> str:
        index = self.index or ""
        return index if index.startswith(("http://", "https://")) else str(Path(index).resolve())


def _at_least(bound: int, name: str, value: int) -> None:
    if value < bound:
        raise ConfigError(f"{name}: must be >= {bound}, not {value}")
