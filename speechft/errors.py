"""Every error that speechft raises on purpose.

Each is also a ``ValueError`` or a ``TypeError``, so a caller who knows nothing of speechft can
catch it, and each says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

from pathlib import Path


class SpeechftError(Exception):
    """Base of all errors raised by speechft."""


class ArgumentError(SpeechftError, ValueError):
    """An argument has a value that cannot be used. ``argument`` holds its name."""

    def __init__(self, argument: str, message: str) -> None:
        self.argument = argument
        super().__init__(f"{argument}: {message}")


class ArgumentTypeError(SpeechftError, TypeError):
    """An argument has a type or a dtype that cannot be used. ``argument`` holds its name."""

    def __init__(self, argument: str, message: str) -> None:
        self.argument = argument
        super().__init__(f"{argument}: {message}")


class NonFiniteError(ArgumentError):
    """A tensor holds NaN or infinity where it counts."""


class LengthError(ArgumentError):
    """A length is zero, negative, beyond the padded size, or of the wrong shape."""


class ClipTooShortError(LengthError):
    """A waveform is too short for the encoder to make one frame of it."""


class BackendError(SpeechftError, ValueError):
    """The backend asked for does not exist or cannot run here."""


class AudioError(SpeechftError, ValueError):
    """An audio file cannot be used. ``path`` names it and ``reason`` says why, in one phrase."""

    def __init__(self, path: str | Path, reason: str, *, utterance: str | None = None) -> None:
        self.path, self.reason, self.utterance = str(path), reason, utterance
        name = f"{path} (utterance {utterance!r})" if utterance is not None else str(path)
        super().__init__(f"{name}: {reason}")


class ManifestError(SpeechftError, ValueError):
    """A manifest cannot be read. ``path`` and ``line`` (from 1; None for the whole) say where."""

    def __init__(self, path: str | Path, line: int | None, reason: str) -> None:
        self.path, self.line, self.reason = str(path), line, reason
        where = f"{path}, line {line}" if line is not None else str(path)
        super().__init__(f"{where}: {reason}")


class ConfigError(SpeechftError, ValueError):
    """A setting is unknown or contradicts another."""


class TrainingError(SpeechftError, ValueError):
    """Training cannot go on."""


class NoGradientError(TrainingError):
    """Trainable tensors received no gradient. ``names`` lists them."""

    def __init__(self, names: list[str], message: str) -> None:
        self.names = names
        super().__init__(message)


class DivergedError(TrainingError):
    """The loss is not finite."""


class CollapsedError(TrainingError):
    """The representations have collapsed. ``monitor`` names what showed it."""

    def __init__(self, monitor: str, message: str) -> None:
        self.monitor = monitor
        super().__init__(message)


class InterruptedRun(SpeechftError, RuntimeError):
    """A run was stopped by a signal, and saved; it can be resumed."""

    def __init__(self, step: int, output: str | Path) -> None:
        self.step, self.output = step, str(output)
        super().__init__(f"stopped and saved at step {step} in {output}; go on with --resume")
