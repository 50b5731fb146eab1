"""A progress bar on a terminal, a line now and then elsewhere; and stopping on a signal."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from transformers import TrainerCallback


class Progress(TrainerCallback):  # type: ignore[misc]
    """Steps, loss and speed (seconds of audio a second) while training runs."""

    def __init__(self, *, lines: int = 10) -> None:
        self.lines = lines
        self.loss = ""
        self.bar: Any = None
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self.start, self.first_step = time.perf_counter(), state.global_step
        if not state.is_world_process_zero:
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="refining")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Remember the loss to show."""
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.4f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar, or print one of a few lines."""
        if not state.is_world_process_zero:
            return
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix_str(f"{self.loss} {self._speed()}")
        elif state.global_step % max(1, state.max_steps // self.lines) == 0:
            done = f"step {state.global_step} of {state.max_steps}"
            print(f"  {done}  {self.loss}  {self._speed()}", file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def _speed(self) -> str:
        seconds = 0.0 if self.trainer is None else self.trainer.seconds_of_audio
        return f"{seconds / (time.perf_counter() - self.start):.0f} × real time"


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """On SIGTERM or SIGINT: finish the step, write a checkpoint, stop."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._stop)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop, if asked to."""
        if self.stopped_by is not None and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped_by is not None:  # a second time: at once
            raise KeyboardInterrupt
        self.stopped_by = number
        print("stopping after this step, with a checkpoint", file=sys.stderr, flush=True)
