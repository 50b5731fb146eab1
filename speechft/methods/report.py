"""What a refinement run did, as JSON to keep and a table to read."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from speechft.data import Ledger
from speechft.methods.base import Method


@dataclass(frozen=True)
class Report:
    """A finished run.

    Attributes:
        loss_before, loss_after: the method's loss in eval mode, on the same utterances and under
            the same perturbations.
        audio_seconds: audio that went through training, each utterance once a step it was in.
        seconds: wall clock of training.
        times: seconds in reading, augmentation, encoder (forward, backward and update) and loss.
        tuned: tensors of the encoder that trained.
    """

    method: str
    source: str
    model: str
    data: dict[str, Any]
    steps: int
    loss_before: float
    loss_after: float
    audio_seconds: float
    seconds: float
    times: dict[str, float]
    device: str
    tuned: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    finished: str

    @classmethod
    def make(
        cls,
        *,
        method: Method,
        model: str,
        data: str,
        ledger: Ledger,
        repeated: int,
        settings: dict[str, Any],
        loss: tuple[float, float],
        steps: int,
        seconds: float,
        audio_seconds: float,
        phases: dict[str, float],
        device: torch.device,
    ) -> Report:
        """Gather what there is to tell."""
        import transformers

        import speechft

        step = phases.get("step", 0.0)
        augmentation, alignment = phases.get("augmentation", 0.0), phases.get("loss", 0.0)
        times = {
            "augmentation": augmentation,
            "encoder": step - augmentation - alignment,
            "loss": alignment,
            "other": max(seconds - step, 0.0),
        }
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
        return cls(
            method=method.name,
            source=method.source,
            model=model,
            data={"source": data, "rows": ledger.rows, "used": ledger.seen,
                  "skipped": len(ledger.skipped), "repeated": repeated,
                  "seconds": round(ledger.seconds, 3)},
            steps=steps,
            loss_before=loss[0],
            loss_after=loss[1],
            audio_seconds=audio_seconds,
            seconds=seconds,
            times=times,
            device=name,
            tuned=method.tuned(),
            settings=settings,
            versions={
                "speechft": speechft.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": sys.version.split()[0],
            },
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip

    @property
    def speed(self) -> float:
        """Seconds of audio a second of training."""
        return self.audio_seconds / self.seconds if self.seconds else 0.0

    def write(self, path: Path) -> None:
        """Write JSON."""
        content = {**asdict(self), "times_real_time": self.speed}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        def share(name: str) -> str:
            return f"{self.times[name]:.1f} s ({self.times[name] / self.seconds:.0%})"

        rows = [
            ("loss before → after", f"{self.loss_before:.4f} → {self.loss_after:.4f}"),
            ("steps", f"{self.steps}"),
            ("audio", f"{self.audio_seconds:.0f} s in {self.seconds:.0f} s"),
            ("speed", f"{self.speed:.1f} × real time"),
            ("augmentation", share("augmentation")),
            ("encoder, both ways", share("encoder")),
            ("loss (soft-DTW)" if self.method == "score" else "loss", share("loss")),
            ("reading and the rest", share("other")),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
