"""TRL's GRPO trainer, fed with our rollouts.

TRL keeps the optimizer, the losses, the checkpoints and everything distributed. We replace the one method that makes
its batches (`_generate_and_score_completions`), and the forward of the loss, where rows share a prefix. Both are
private to TRL, hence the pin in `pyproject.toml` and the contract tests in `tests/train/test_trainer.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer

from icrl.errors import ConfigError
from icrl.runtime.engines.loading import SMALL
from icrl.seeds import seed_for
from icrl.train.batch import batch_of
from icrl.train.config import LoraConfig, TrainConfig
from icrl.train.curriculum import Stages
from icrl.train.gap import Gap
from icrl.train.logprobs import can_share_prefix, shared_prefix_logprobs
from icrl.trajectory import Row, StopReason

__all__ = ["AfterStep", "RolloutTrainer", "RowSource", "build_trainer", "trainer_arguments"]


class RowSource(Protocol):
    """Where batches come from."""

    def rows(self, step: int, model: torch.nn.Module) -> Sequence[Row]:
        """Sync `model` to the engine and roll out the rows of a step; empty where no group is informative."""
        ...

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Hear what the trainer measured in a step."""
        ...

    def save(self, directory: str, step: int) -> None:
        """Write what a resumed run needs beside the trainer's own checkpoint."""
        ...


class RolloutTrainer(GRPOTrainer):  # type: ignore[misc]
    """A `GRPOTrainer` whose rows come from a `RowSource` and whose ratio is taken against the sampling logprobs.

    Args:
        source: Makes the rows of each step.
        pad_id: Padding token.
        **kwargs: As for `GRPOTrainer`.
    """

    def __init__(self, *, source: RowSource, pad_id: int, **kwargs: Any) -> None:
        super().__init__(reward_funcs=[_no_reward], **kwargs)
        self._source = source
        self._pad_id = pad_id
        self._has_rows = True
        self._shared_prefix_B: torch.Tensor | None = None
        self._logprobs_BC: torch.Tensor | None = None
        self._gap = Gap()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rows = self._source.rows(self.state.global_step + 1, self.plain_model)
        self._has_rows = bool(rows)
        if not rows:
            rows = [_empty_row(self._pad_id)]
        batch = batch_of(
            rows,
            pad_id=self._pad_id,
            multiple_of=self.args.steps_per_generation,
            device=self.accelerator.device,
            version=self.state.global_step,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        if self.beta != 0.0:
            batch["ref_per_token_logps"] = self._reference_logprobs(batch)
        # TRL shuffles the rows next, and the order tells in the last digits. It has to be that of the step: what is
        # saved after Ctrl-C has the generator of the middle of the next one.
        torch.manual_seed(seed_for(self.args.seed, "rows", self.state.global_step))
        return batch

    def _reference_logprobs(self, batch: dict[str, Any]) -> torch.Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].size(1)
        with torch.no_grad():
            if self.ref_model is not None:
                scored = super()._get_per_token_logps_and_entropies(self.ref_model, ids, mask, width)
            else:
                with self.plain_model.disable_adapter():
                    scored = super()._get_per_token_logps_and_entropies(self.model, ids, mask, width)
        logprobs_BC: torch.Tensor = scored[0]
        return logprobs_BC

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self._shared_prefix_B = inputs["shared_prefix"]
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self._shared_prefix_B = None
        self._compare(inputs)
        return loss

    def _compare(self, inputs: dict[str, Any]) -> None:
        """Measure how far the trainer's log-probabilities are from the engine's.

        The ratio is of all trained tokens; the gap of those only that the engine sampled under the trainer's weights
        (`exact_spans`), where any difference is the arithmetic's, or a mistake.
        """
        trained_BC = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        if self._logprobs_BC is None or not trained_BC.any():
            return
        gap_BC = self._logprobs_BC.detach() - inputs["old_per_token_logps"]
        self._gap.add(gap_BC[trained_BC], gap_BC[trained_BC & inputs["on_policy"]])

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        plain = self.accelerator.unwrap_model(model)
        # What shards or synchronises the weights hangs on the wrapped model's own forward.
        wrapped = self.accelerator.num_processes > 1
        if self._shared_prefix_B is None or wrapped or not can_share_prefix(plain):
            scored = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **kwargs
            )
            self._logprobs_BC = scored[0]
            return scored  # type: ignore[no-any-return]
        with self.accelerator.autocast():
            self._logprobs_BC, entropies_BC = shared_prefix_logprobs(
                plain,
                input_ids,
                attention_mask,
                completion_length=logits_to_keep,
                prefix_lengths_B=self._shared_prefix_B,
                temperature=self.temperature,
            )
        return self._logprobs_BC, entropies_BC, None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run TRL's step; a step without informative rows leaves the weights, and Adam's momentum, alone."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not self._has_rows:
            model.zero_grad(set_to_none=True)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand what TRL measured to the source."""
        if "loss" in logs:
            sums = torch.tensor([self._gap.sums()], device=self.accelerator.device)
            logs |= Gap.values(self.accelerator.gather(sums).tolist())
        super().log(logs, start_time)
        if "loss" in logs:
            self._source.logged(self.state.global_step, logs)

    @property
    def plain_model(self) -> Any:
        """The model without what accelerate wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def save_now(self) -> None:
        """Write a checkpoint of the last completed step, unless it has one or nothing was trained yet."""
        target = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        if self.state.global_step and not target.exists():
            self._save_checkpoint(self.model, trial=None)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: `report.md` says what a card would."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        self._source.save(f"{self._get_output_dir(trial=trial)}/checkpoint-{step}", step)


class AfterStep(TrainerCallback):  # type: ignore[misc]
    """Says after every optimizer step whether to save and whether to stop.

    Args:
        finished: Whether training is over.
        save_every: Steps between checkpoints; 0 saves at the end only.
    """

    def __init__(self, finished: Callable[[], bool], save_every: int) -> None:
        self._finished = finished
        self._save_every = save_every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Decide after each optimizer step."""
        control.should_training_stop = control.should_training_stop or self._finished()
        due = self._save_every > 0 and state.global_step % self._save_every == 0
        control.should_save = due or control.should_training_stop
        return control


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """Satisfy TRL's constructor; rewards are computed by the source."""
    return [0.0] * len(completions)


def _empty_row(pad_id: int) -> Row:
    """Stand in where a step has no informative rows: its mask is empty, so its gradient is zero."""
    return Row(
        token_ids=(pad_id, pad_id, pad_id),
        prompt_length=1,
        loss_mask=(False, False, False),
        logprobs=(0.0, 0.0, 0.0),
        reward=0.0,
        advantage=0.0,
        group_id="",
        trajectory_id="",
        index=0,
        temperature=1.0,
        stop_reason=StopReason.ABORTED,
    )


def trainer_arguments(config: TrainConfig, directory: Path, world: int = 1) -> GRPOConfig:
    """Translate our configuration; everything that TRL would choose differently from the proven recipe is said.

    Raises:
        ConfigError: The rows of a step cannot be divided among the processes.
    """
    rows = config.rollout.prompts * config.rollout.group_size
    if rows % (config.loss.micro_batches * world):
        raise ConfigError(
            f"loss.micro_batches: {config.loss.micro_batches} on {world} processes does not divide the {rows} rows of "
            "a step (rollout.prompts x rollout.group_size)"
        )
    return GRPOConfig(
        output_dir=str(directory),
        max_steps=Stages(config.schedule).max_steps,
        per_device_train_batch_size=rows // config.loss.micro_batches // world,
        gradient_accumulation_steps=config.loss.micro_batches,
        steps_per_generation=config.loss.micro_batches,
        num_generations=config.rollout.group_size,
        num_iterations=1,
        temperature=config.rollout.temperature,
        max_completion_length=config.limits.max_tokens,
        learning_rate=config.optimizer.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.optimizer.warmup_steps,
        adam_beta1=config.optimizer.beta1,
        adam_beta2=config.optimizer.beta2,
        weight_decay=config.optimizer.weight_decay,
        max_grad_norm=config.optimizer.max_grad_norm,
        loss_type=config.loss.type,
        epsilon=config.loss.clip_low,
        epsilon_high=config.loss.clip_high,
        beta=config.loss.kl,
        activation_checkpointing=config.loss.activation_checkpointing,
        bf16=config.precision == "bfloat16",
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        shuffle_dataset=False,
        disable_dropout=True,
        seed=config.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )


def build_trainer(
    config: TrainConfig, model_directory: Path, checkpoints: Path, source: RowSource, callback: AfterStep
) -> RolloutTrainer:
    """Load the model and its tokenizer and put a trainer around them.

    Args:
        config: The run's configuration.
        model_directory: A Hugging Face directory.
        checkpoints: Where checkpoints are written.
        source: Makes the rows.
        callback: Hears the end of every step.
    """
    # The live view shows progress; TRL's and the hub's bars and dictionaries would tear it apart.
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    torch.set_num_threads(config.torch_threads or _threads(model))
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for an attribute under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        trainer = _trainer(config, model, tokenizer, checkpoints, source, callback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer(
    config: TrainConfig, model: Any, tokenizer: Any, checkpoints: Path, source: RowSource, callback: AfterStep
) -> RolloutTrainer:
    return RolloutTrainer(
        source=source,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        model=model,
        args=trainer_arguments(config, checkpoints, PartialState(cpu=not torch.cuda.is_available()).num_processes),
        # TRL wants a data set; what it yields is ignored, one step is one epoch of it.
        train_dataset=Dataset.from_dict({"prompt": [""] * config.rollout.prompts}),
        processing_class=tokenizer,
        callbacks=[callback],
        peft_config=_lora(config.lora),
    )


def _threads(model: torch.nn.Module) -> int:
    """Choose as the engine does: a small model gains nothing from a second thread, and loses much on a busy machine."""
    parameters = sum(p.numel() for p in model.parameters())
    return 1 if parameters < SMALL else os.cpu_count() or 1


def _lora(config: LoraConfig) -> Any:
    if config.rank == 0:
        return None
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), lora_dropout=0.0, bias="none"
    )
