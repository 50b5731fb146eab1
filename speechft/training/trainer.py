"""The trainer: ``transformers.Trainer``, fed by the step, audited and timed."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from speechft.errors import DivergedError, NonFiniteError
from speechft.training.audit import GradientAudit
from speechft.training.collapse import CollapseWatch, read
from speechft.training.loader import StepSampler, TrainingData, audio_seconds, make_loader
from speechft.training.optimisation import make_optimizer, make_schedule
from speechft.training.settings import TrainingSettings
from speechft.training.trainable import Trainable


class RefinementTrainer(Trainer):  # type: ignore[misc]
    """Trains a :class:`speechft.methods.Method` on :class:`~speechft.training.loader.TrainingData`.

    What it adds to its base: batches and perturbations are pure functions of (seed, step), so a
    resumed run is the same run; every trainable tensor's gradient is audited in the first steps;
    a loss that is not finite stops the run at the next log line; the time of each phase is kept.

    Args:
        method: gives ``loss`` from what it names in ``inputs``, and has a ``stopwatch``.
        data: what to train on.
        settings: how.
        output: the run's folder; checkpoints go to ``output / "checkpoints"``.
        callbacks: further ``transformers`` callbacks.
    """

    def __init__(
        self,
        method: Trainable,
        data: TrainingData,
        settings: TrainingSettings,
        output: Path,
        *,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        arguments = TrainingArguments(
            output_dir=str(output / "checkpoints"),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            max_grad_norm=settings.max_grad_norm,
            bf16=settings.precision == "bfloat16",
            use_cpu=device_of(settings).type == "cpu",
            seed=settings.seed,
            data_seed=settings.seed,
            logging_steps=settings.log_every,
            logging_nan_inf_filter=False,
            save_strategy="no" if settings.save_every is None else "steps",
            save_steps=settings.save_every or settings.steps,
            save_total_limit=settings.keep_checkpoints,
            ignore_data_skip=True,  # the sampler starts at the step it is asked for
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )
        self.settings = settings
        self.data = data
        self.inputs = method.inputs
        self.stopwatch = method.stopwatch
        self.seconds_of_audio = 0.0
        self._audit = GradientAudit(method)
        self.method = method
        hooks = [_Hooks(method), CollapseWatch(method)]
        super().__init__(model=method, args=arguments, callbacks=[*hooks, *(callbacks or [])])
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All batches of the run, from the current step on, this rank's share."""
        sampler = StepSampler(
            self.data.batches,
            self.settings.steps * self.settings.accumulate,
            lambda: self.state.global_step * self.settings.accumulate,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        return make_loader(
            self.data, sampler, seed=self.settings.seed, workers=self.settings.workers
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Tensors that decay: as its base has it, but for vectors (of batch norm, of layers)."""
        found: list[str] = super().get_decay_parameter_names(model)
        shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
        return [name for name in found if shapes[name] > 1]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As its base has it for AdamW; what else the settings ask for."""
        known: Any = self.optimizer  # type: ignore[has-type]
        if self.settings.optimizer != "adamw" and known is None:
            decays = set(self.get_decay_parameter_names(self.method))
            named = [(n, p) for n, p in self.method.named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for n, p in named if (n in decays) is kind], "weight_decay": decay}
                for kind, decay in ((True, self.settings.weight_decay), (False, 0.0))
            ]
            self.optimizer = make_optimizer(self.settings, groups)
        made: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        return made

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Of the learning rate: linear as its base has it, or as the settings say."""
        known: Any = self.lr_scheduler  # type: ignore[has-type]
        if self.settings.schedule == "linear" or known is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        chosen = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = make_schedule(self.settings, chosen)
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The method's loss on a batch, a mean over its utterances."""
        try:
            output = model(**{name: inputs[name] for name in self.inputs})
        except NonFiniteError as error:  # the audio was scanned, so it is the weights
            raise DivergedError(self._diverged(str(error))) from error
        return (output.loss, output) if return_outputs else output.loss

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of one batch, then the audit."""
        self.seconds_of_audio += audio_seconds(inputs, self.data.sample_rate)
        with self.stopwatch("step"):
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if loss.device.type == "cpu" and not math.isfinite(loss):  # a GPU is asked at log lines
            raise DivergedError(self._diverged(f"the loss is {float(loss)}"))
        self._audit()
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and stop where the loss is not finite.

        Raises:
            DivergedError: a loss or a gradient norm that is NaN or infinite.
        """
        if "loss" in logs:
            logs = {**logs, **read(self.method.monitors())}
        super().log(logs, start_time)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise DivergedError(self._diverged(f"{name} is {logs[name]}"))

    def _diverged(self, what: str) -> str:
        return (
            f"diverged at step {self.state.global_step}: {what}. Lower the learning rate or raise "
            "the warm-up; the updates before are in metrics.jsonl"
        )


class _Hooks(TrainerCallback):  # type: ignore[misc]
    """Tells a method where the run is; see :class:`Trainable`."""

    def __init__(self, method: Trainable) -> None:
        self.method = method

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first batch of an update."""
        self.method.at_step(state.global_step, state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Gradients are there, and clipped."""
        self.method.before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The weights have moved."""
        self.method.after_update()


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """One JSON line for each log entry, with the seconds since the start."""

    def __init__(self, path: Path, *, append: bool) -> None:
        self.path = path
        self.start = time.perf_counter()
        if not append:
            path.write_text("")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the line."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        line = {
            "step": state.global_step,
            **{k: v for k, v in logs.items() if k != "epoch"},
            "seconds": round(time.perf_counter() - self.start, 3),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def device_of(settings: TrainingSettings) -> torch.device:
    """The device that ``settings.device`` means here."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)
