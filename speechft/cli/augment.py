"""What ``speechft augment`` does: a file through a chain, what was drawn for it, and a picture."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechft.augment.base import Augmentation
from speechft.augment.chain import load_chain
from speechft.augment.compose import Composition
from speechft.augment.keys import MEMBER, fold_in, make_keys
from speechft.augment.noise import Babble
from speechft.augment.parameters import Parameters
from speechft.cli.spectrogram import draw, pyplot
from speechft.data import load_audio, utterance_key
from speechft.data.audio import SAMPLE_RATE
from speechft.errors import ConfigError

_FLOATS, _INTEGERS = ".wav", {".flac": "PCM_24", ".ogg": "VORBIS"}
_INWARD = ("rank",)  # drawn for others of the batch
_MOST_PANELS = 6  # copies in one picture
_MOST_NUMBERS = 4  # of a list in the printed table; JSON has all


@dataclass(frozen=True)
class Level:
    """How long and how loud a waveform is; decibels are of full scale, None is silence."""

    seconds: float
    peak_dbfs: float | None
    rms_dbfs: float | None
    beyond_full_scale: int


@dataclass(frozen=True)
class Step:
    """What an augmentation drew for a sample, whether it was applied, and what came in between."""

    place: str
    name: str
    applied: bool
    values: dict[str, Any]
    composed: bool = False
    skipped: bool = False
    note: str = ""

    def __str__(self) -> str:
        if not self.applied:
            return "not applied"
        if self.composed:
            return self.note
        parts = [f"{name}={_number(value)}" for name, value in self.used().items()]
        if self.skipped:
            parts.append(f"SKIPPED: {self.note}")
        return "  ".join(parts) or "applied"

    @property
    def depth(self) -> int:
        """How many others it is in."""
        return self.place.count(".")

    def used(self) -> dict[str, Any]:
        """Of the values those that mean something here: for three bands out of four, three."""
        found = {name: value for name, value in self.values.items() if name not in _INWARD}
        count = found.get("count", found.get("voices"))
        if "clips" in found:
            found["clips"] = [clip for clip in found["clips"] if clip >= 0]
            count = len(found["clips"])
            if not self.skipped:
                found["clips"] = self.note.split(", ")
        if not isinstance(count, int):
            return found
        return {
            name: value[:count] if isinstance(value, list) else value
            for name, value in found.items()
        }


@dataclass(frozen=True)
class Copy:
    """One output."""

    output: str
    epoch: int
    key: int
    steps: list[Step]
    level: Level
    kept: bool
    samples: Any = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """All that the command did."""

    source: str
    utterance: str
    chain: str
    seed: int
    view: int | None
    before: Level
    copies: list[Copy]
    plot: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without waveforms."""
        found = asdict(self)
        for copy in found["copies"]:
            del copy["samples"]
        return found

    def __str__(self) -> str:
        view = "" if self.view is None else f", view {self.view}"
        lines = [f"{self.source}: utterance {self.utterance!r}", f"chain: {self.chain}"]
        for copy in self.copies:
            lines += ["", f"seed {self.seed}, epoch {copy.epoch}{view}: key {copy.key}"]
            width = max(2 * step.depth + len(step.name) for step in copy.steps)
            for step in copy.steps:
                name = "  " * step.depth + step.name
                lines.append(f"  {name:<{width}}  {step}".rstrip())
            skipped = sum(step.skipped for step in copy.steps)
            lines.append(f"  skipped: {skipped or 'none'}")
            lines += _table([("before", self.before), ("after", copy.level)])
            if copy.level.beyond_full_scale:
                what = (
                    "kept, for the file holds floats"
                    if copy.kept
                    else "clipped in the file, which cannot hold them; .wav can"
                )
                lines.append(f"  samples beyond full scale: {what}")
            lines.append(f"  written to {copy.output}")
        return "\n".join([*lines, *([f"\npicture: {self.plot}"] if self.plot else [])])


def run(
    source: str | Path,
    output: str | Path,
    chain_file: str | Path,
    *,
    seed: int = 0,
    epoch: int = 0,
    view: int | None = None,
    copies: int = 1,
    utterance: str | None = None,
    plot: str | Path | None = None,
) -> Outcome:
    """Perturb a file as a run would, and write what comes out.

    Args:
        source: an audio file.
        output: WAV of float32, FLAC or Ogg, by its ending.
        chain_file: for :func:`speechft.augment.chain.load_chain`.
        seed: of the run.
        epoch: of the run.
        view: a number that is folded into the key, for methods with several views; None: none is.
        copies: of as many epochs one after another, each in a file of its own.
        utterance: the id in the run's data; None: the name of the file without its ending, which
            it has where its folder is the data.
        plot: a PNG to draw.

    Raises:
        ConfigError: the chain, an ending, or arguments that cannot be used.
        AudioError: the file cannot be used.
    """
    source, output = Path(source), Path(output)
    outputs = _outputs(source, output, copies, plot)
    if plot is not None:
        pyplot()  # missing before the work rather than after it
    chain = load_chain(chain_file, sample_rate=SAMPLE_RATE)
    utterance = source.stem if utterance is None else utterance
    clean = torch.from_numpy(load_audio(source, sample_rate=SAMPLE_RATE))
    made = []
    for number, path in enumerate(outputs):
        keys = make_keys(seed, epoch + number, torch.tensor([utterance_key(utterance)]))
        if view is not None:
            keys = fold_in(keys, view)
        counted = {module: int(module.skipped) for module in _all(chain)}
        waveforms, lengths = chain(clean[None], None, keys)
        skipped = {module for module, before in counted.items() if int(module.skipped) > before}
        samples = waveforms[0, : int(lengths[0])].numpy()
        made.append(
            Copy(
                output=str(path),
                epoch=epoch + number,
                key=int(keys),
                steps=list(_steps(chain, keys, chain.parameters_for(keys), skipped)),
                level=_level(samples),
                kept=path.suffix.lower() == _FLOATS,
                samples=samples,
            )
        )
    for copy in made:
        with _writing("output", copy.output):
            _write(Path(copy.output), copy.samples)
    outcome = Outcome(
        source=str(source),
        utterance=utterance,
        chain=in_short(chain),
        seed=seed,
        view=view,
        before=_level(clean.numpy()),
        copies=made,
        plot=None if plot is None else str(plot),
    )
    if plot is not None:
        with _writing("plot", plot):
            draw(_clips(clean.numpy(), outcome), outcome.chain, Path(plot))
    return outcome


def in_short(augmentation: Augmentation) -> str:
    """The names of a chain in a line: ``Speed → OneOf(Babble, Gain)``."""
    if not isinstance(augmentation, Composition):
        return type(augmentation).__name__
    names = [in_short(member) for member in augmentation.members]
    if type(augmentation).__name__ == "Compose":
        return " → ".join(names) or "nothing"
    return f"{type(augmentation).__name__}({', '.join(names)})"


def _clips(clean: Any, outcome: Outcome) -> list[tuple[str, Any]]:
    """What the picture shows: the clip before, and below it each copy."""
    copies = outcome.copies[:_MOST_PANELS]
    clips = [(f"before: {Path(outcome.source).name}", clean)]
    for copy in copies:
        epoch = f" (epoch {copy.epoch})" if len(copies) > 1 else ""
        clips.append((f"after{epoch}: {_done(copy.steps)}", copy.samples))
    return clips


def _outputs(source: Path, output: Path, copies: int, plot: str | Path | None) -> list[Path]:
    known = (_FLOATS, *_INTEGERS)
    if output.suffix.lower() not in known:
        raise ConfigError(f"output: wants a file that ends in {', '.join(known)}, got {output}")
    if copies < 1:
        raise ConfigError(f"copies: wants at least 1, got {copies}")
    if plot is not None and Path(plot).suffix.lower() != ".png":
        raise ConfigError(f"plot: wants a file that ends in .png, got {plot}")
    outputs = [output]
    if copies > 1:
        outputs = [output.with_stem(f"{output.stem}-{number}") for number in range(copies)]
    for path in outputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(f"output: {path} is what is read; choose another file")
    return outputs


def _all(chain: Augmentation) -> Iterator[Augmentation]:
    return (module for module in chain.modules() if isinstance(module, Augmentation))


def _steps(
    augmentation: Augmentation,
    keys: Tensor,
    drawn: Parameters,
    skipped: set[Augmentation],
    place: str = "",
    applied: bool = True,
) -> Iterator[Step]:
    """A row for each augmentation in order, but the chain itself; ``keys`` are one."""
    name = type(augmentation).__name__
    if not isinstance(augmentation, Composition):
        values = {key: value[0].tolist() for key, value in drawn.values.items()}
        used = bool(values.pop("applied"))
        lost = used and augmentation in skipped
        yield Step(place, name, used, values, False, lost, _note(augmentation, values, lost))
        return
    # A composition tells its members, and nobody else, whether it is applied and what it chose.
    own = Augmentation.parameters_for(augmentation, keys)
    applied = applied and bool(own["applied"][0])
    members = augmentation.members
    chosen = own["chosen"][0].tolist() if "chosen" in own else [True] * len(members)
    if place:
        taken = [type(one).__name__ for one, is_in in zip(members, chosen, strict=True) if is_in]
        note = f"chose {', '.join(taken) or 'none'}" if "chosen" in own else ""
        yield Step(place, name, applied, {}, True, False, note)
    for number, (member, values_of_it) in enumerate(zip(members, drawn.members, strict=True)):
        yield from _steps(
            member,
            fold_in(keys, number, use=MEMBER),
            values_of_it,
            skipped,
            f"{place}.{number}" if place else str(number),
            applied and chosen[number],
        )


def _note(augmentation: Augmentation, values: dict[str, Any], skipped: bool) -> str:
    """What the values do not say: the names of clips, and why a sample was skipped."""
    if skipped and isinstance(augmentation, Babble):
        return "a file is alone in its batch, without other voices"
    if skipped:
        return "speech or noise is silent: there is no ratio of their levels"
    names = getattr(getattr(augmentation, "bank", None), "names", None)
    if names is None or "clips" not in values:
        return ""
    return ", ".join(Path(names[clip]).name for clip in values["clips"] if clip >= 0)


def _done(steps: Sequence[Step]) -> str:
    """What was done to a copy, in a line, by the values that are one number."""
    parts = []
    for step in steps:
        if step.applied and not step.composed and not step.skipped:
            values = [
                f"{name} {_number(value)}"
                for name, value in step.used().items()
                if isinstance(value, (int, float))
            ]
            parts.append(" ".join([step.name, *values]))
    return ", ".join(parts) or "nothing"


def _number(value: Any) -> str:
    if isinstance(value, list):
        more = ["..."] if len(value) > _MOST_NUMBERS else []
        return f"[{', '.join([*map(_number, value[:_MOST_NUMBERS]), *more])}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _level(samples: Any) -> Level:
    wide = samples.astype(np.float64)
    magnitude = np.abs(wide)
    return Level(
        seconds=len(samples) / SAMPLE_RATE,
        peak_dbfs=_decibels(float(magnitude.max())),
        rms_dbfs=_decibels(float(np.sqrt(np.mean(wide * wide)))),
        beyond_full_scale=int((magnitude > 1).sum()),
    )


def _decibels(value: float) -> float | None:
    return 20 * math.log10(value) if value > 0 else None


def _table(rows: Sequence[tuple[str, Level]]) -> list[str]:
    lines = [f"  {'':<6}  {'seconds':>8}  {'peak dB':>8}  {'RMS dB':>8}  beyond full scale"]
    for name, level in rows:
        peak, mean = (
            "silence" if value is None else f"{value:.1f}"
            for value in (level.peak_dbfs, level.rms_dbfs)
        )
        beyond = level.beyond_full_scale
        lines.append(f"  {name:<6}  {level.seconds:>8.3f}  {peak:>8}  {mean:>8}  {beyond:>17}")
    return lines


@contextmanager
def _writing(argument: str, path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{argument}: {path} cannot be written: {error.strerror}") from error


def _write(path: Path, samples: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = _INTEGERS.get(path.suffix.lower())
    if kind is not None:
        import soundfile

        soundfile.write(path, samples.clip(-1, 1), SAMPLE_RATE, subtype=kind)
        return
    # libsndfile puts the time of day into a WAV of floats; the same samples are the same bytes.
    data = samples.astype("<f4").tobytes()
    format_ = struct.pack("<4sIHHIIHHH", b"fmt ", 18, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32, 0)
    fact = struct.pack("<4sII", b"fact", 4, len(samples))
    body = b"WAVE" + format_ + fact + struct.pack("<4sI", b"data", len(data)) + data
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
