"""The best state of a run, by a figure on utterances that are held out of the training data.

Every so many updates, and after the last, the figure is taken; where it is as high as the highest
so far, or higher, what has trained is copied. After the last update the best copy is put back, and
that is what is saved. The copy is a part of the method, so a checkpoint has it, and a resumed run
chooses as one that was never stopped.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from speechft.data import SpeechDataset
from speechft.errors import ConfigError
from speechft.methods.base import Method, MethodConfig
from speechft.methods.held_out import Parts, hold_out

FILE = "selection.json"


@dataclass(frozen=True)
class SelectionConfig(MethodConfig):
    """Settings of what is held out; see :func:`speechft.methods.held_out.hold_out`.

    Args:
        validation: share of the training utterances that are held out to choose the best state
            by; 0: the last one is kept.
        groups: a label whose values are not to be on both sides, such as ``"speaker"``.
        part: a label that is ``"validation"`` of what is to be held out, in place of the share.
        validate_every: updates between figures; None: a tenth of the run.

    Raises:
        ConfigError: a value out of range.
    """

    validation: float = 0.0
    groups: str | None = None
    part: str | None = None
    validate_every: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation: wants 0 to below 1, got {self.validation}")
        if self.validate_every is not None and self.validate_every < 1:
            raise ConfigError(f"validate_every: wants at least 1, got {self.validate_every}")

    @property
    def selects(self) -> bool:
        """Whether anything is held out."""
        return self.validation > 0 or self.part is not None


class Best(nn.Module):
    """A copy of what trains in a module, and of its buffers: as it was when it was best.

    Attributes:
        figure: by which it was; minus infinity before the first.
        step: how many updates it had had.
    """

    figure: Tensor
    step: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.register_buffer("figure", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))
        for number, tensor in enumerate(_changing(module)):
            self.register_buffer(f"kept_{number}", tensor.detach().clone())

    @torch.no_grad()
    def offer(self, module: nn.Module, figure: float, step: int) -> None:
        """Copy the module if it is as good as what is kept; of equals the latest is kept."""
        if figure < float(self.figure):
            return
        self.figure.fill_(figure)
        self.step.fill_(step)
        for number, tensor in enumerate(_changing(module)):
            self.get_buffer(f"kept_{number}").copy_(tensor)

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Put what is kept into the module."""
        for number, tensor in enumerate(_changing(module)):
            tensor.copy_(self.get_buffer(f"kept_{number}"))


class SelectingMethod(Method):
    """A method that may hold utterances out, and then ends with its best state.

    Attributes:
        best: what is kept; None where nothing is held out.
        figure_name: of :meth:`figure`, in words.
    """

    settings: Any
    figure_name: str

    def __init__(self) -> None:
        super().__init__()
        self.best: Best | None = None
        self._step, self._steps = 0, 1
        self._last: float | None = None
        self._held: list[str] = []

    def selected(self) -> nn.Module:
        """The module that is chosen a state for."""
        raise NotImplementedError

    def figure(self) -> float:
        """On what is held out, in eval mode; more is better."""
        raise NotImplementedError

    def keep_best(self) -> None:
        """Make room for the best state, if one is to be chosen: at the end of ``__init__``."""
        if self.settings.selects:
            self.best = Best(self.selected())

    def hold_out(
        self, dataset: SpeechDataset, label: str | None, *, seed: int, least: int = 1
    ) -> Parts:
        """Rows to train on and rows that are held out, as the settings say.

        Raises:
            ConfigError: as :func:`speechft.methods.held_out.hold_out`.
        """
        config = self.settings
        parts = hold_out(
            dataset.manifest, label, share=config.validation, groups=config.groups,
            part=config.part, seed=seed, least=least,
        )  # fmt: skip
        self._held = [dataset.manifest[row].id for row in parts.held]
        return parts

    def at_step(self, step: int, steps: int) -> None:
        """See :class:`~speechft.training.trainable.Trainable`."""
        self._step, self._steps = step, steps

    def after_update(self) -> None:
        """Take the figure where it is due; after the last update go back to the best state."""
        if self.best is None:
            return
        done = self._step + 1
        every = self.settings.validate_every or max(1, self._steps // 10)
        if done % every and done != self._steps:
            return
        training = self.training
        self.eval()
        with torch.no_grad():
            self._last = self.figure()
        self.train(training)
        self.best.offer(self.selected(), self._last, done)
        if done == self._steps:
            self.best.restore(self.selected())

    def monitors(self) -> dict[str, Tensor]:
        """The last figure, and the best; nothing before there is one."""
        if self.best is None or self._last is None:
            return {}
        return {"validation": torch.tensor(self._last), "best_validation": self.best.figure}

    def write_selection(self, output: Path) -> None:
        """Write what was chosen, by what, on what."""
        if self.best is None:
            return
        content = {
            "figure": self.figure_name,
            "best": float(self.best.figure),
            "step": int(self.best.step),
            "held_out": self._held,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        output.mkdir(parents=True, exist_ok=True)
        (output / FILE).write_text(text, encoding="utf-8")


def _changing(module: nn.Module) -> list[Tensor]:
    """What trains in a module, and its buffers: running statistics are among them."""
    return [*(p for p in module.parameters() if p.requires_grad), *module.buffers()]
