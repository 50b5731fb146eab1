"""What ``speechft augment`` does: a file through a chain, what was drawn for it, and a picture."""

from __future__ import annotations

import inspect
import io
import math
import struct
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechft.augment.base import Augmentation
from speechft.augment.chain import load_chain, operations
from speechft.augment.compose import Composition
from speechft.augment.keys import fold_in, make_keys
from speechft.augment.noise import Babble
from speechft.augment.parameters import Parameters
from speechft.data import load_audio, utterance_key
from speechft.data.audio import SAMPLE_RATE
from speechft.errors import ConfigError

_FLOATS, _INTEGERS = ".wav", {".flac": "PCM_24", ".ogg": "VORBIS"}
_INWARD = ("rank",)  # drawn for others of the batch
_WAVE, _FULL_SCALE, _COLOURS = "#1f6f8b", "#d1495b", "magma"
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
        _pyplot()  # missing before the work rather than after it
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
            draw(clean.numpy(), outcome, Path(plot))
    return outcome


def list_operations() -> str:
    """A line for each augmentation: an entry of a chain with its defaults, and what it does."""
    lines = []
    for name, kind in operations().items():
        arguments = ", ".join(
            f"{argument}: {_as_yaml(parameter)}"
            for argument, parameter in inspect.signature(kind).parameters.items()
        )
        changes = f"; changes {' and '.join(sorted(kind.changes))}" if kind.changes else ""
        lines.append(f"- {name}: {{{arguments}}}  # {_summary(kind)}{changes}")
    return "\n".join(lines)


def operations_as_dict() -> dict[str, Any]:
    """What :func:`list_operations` says, as plain values; required arguments are left out."""
    return {
        name: {
            "summary": _summary(kind),
            "changes": sorted(kind.changes),
            "arguments": {
                argument: parameter.default
                for argument, parameter in inspect.signature(kind).parameters.items()
                if parameter.default is not parameter.empty
            },
        }
        for name, kind in operations().items()
    }


def in_short(augmentation: Augmentation) -> str:
    """The names of a chain in a line: ``Speed → OneOf(Babble, Gain)``."""
    if not isinstance(augmentation, Composition):
        return type(augmentation).__name__
    names = [in_short(member) for member in augmentation.members]
    if type(augmentation).__name__ == "Compose":
        return " → ".join(names) or "nothing"
    return f"{type(augmentation).__name__}({', '.join(names)})"


def draw(clean: Any, outcome: Outcome, path: Path) -> None:
    """The waveform and the spectrogram before, and below them those of each copy."""
    plt = _pyplot()
    copies = outcome.copies[:_MOST_PANELS]
    clips = [(f"before: {Path(outcome.source).name}", clean)]
    for copy in copies:
        epoch = f" (epoch {copy.epoch})" if len(copies) > 1 else ""
        clips.append((f"after{epoch}: {_done(copy.steps)}", copy.samples))
    images = [_spectrogram(samples) for _, samples in clips]
    # Above 80 Hz, and but for a few cells: neither hum nor a click decides what can be seen.
    loudest = math.ceil(max(float(np.percentile(image[2:], 99.9)) for image in images))
    seconds = max(len(samples) for _, samples in clips) / SAMPLE_RATE
    peak = max(1e-3, *(float(np.abs(samples).max()) for _, samples in clips))
    fig, axes = plt.subplots(
        2 * len(clips), 1, sharex=True, figsize=(9, 0.7 + 3.1 * len(clips)),
        gridspec_kw={"height_ratios": [1, 2.6] * len(clips)}, layout="constrained",
    )  # fmt: skip
    fig.get_layout_engine().set(h_pad=0.02, hspace=0.01)
    drawn = None
    for number, ((title, samples), image) in enumerate(zip(clips, images, strict=True)):
        wave, spectrum = axes[2 * number], axes[2 * number + 1]
        time, low, high = _outline(samples)
        wave.fill_between(time, low, high, color=_WAVE, linewidth=0.4)
        wave.set_ylim(-1.08 * peak, 1.08 * peak)
        wave.set_ylabel("amplitude")
        wave.set_title("\n".join(textwrap.wrap(title, 105)), fontsize=9.5, loc="left")
        wave.spines[["top", "right"]].set_visible(False)
        if peak > 1:
            for full_scale in (-1, 1):
                wave.axhline(full_scale, color=_FULL_SCALE, linewidth=0.8, linestyle=":")
        drawn = spectrum.imshow(
            image, origin="lower", aspect="auto", interpolation="nearest",
            extent=(0, len(samples) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000),
            cmap=plt.get_cmap(_COLOURS, 64), vmin=loudest - 60, vmax=loudest,
        )  # fmt: skip
        spectrum.set_facecolor("0.92")  # where a shorter clip has ended
        spectrum.set_ylabel("kHz")
        spectrum.set_yticks(range(0, SAMPLE_RATE // 2000 + 1, 2))
    axes[-1].set_xlim(0, seconds)
    axes[-1].set_xlabel("seconds")
    bar = fig.colorbar(
        drawn, ax=axes, fraction=0.025, pad=0.015, aspect=16 * len(clips), extend="both"
    )
    bar.set_label("dB of full scale")
    fig.suptitle("\n".join(textwrap.wrap(outcome.chain, 90)), fontsize=11)
    fig.align_ylabels(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(fig, path)
    plt.close(fig)


def _save(fig: Any, path: Path) -> None:
    """A PNG of the colours that are in it, and their blends with white: a third of the size."""
    from matplotlib import colormaps
    from PIL import Image

    ramps = [np.linspace((0, 0, 0), (1, 1, 1), 32)]
    ramps += [np.linspace(_rgb(colour), (1, 1, 1), 12) for colour in (_WAVE, _FULL_SCALE)]
    colours = np.concatenate([colormaps[_COLOURS].resampled(64)(range(64))[:, :3], *ramps])
    palette = Image.new("P", (1, 1))
    palette.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    memory = io.BytesIO()
    fig.savefig(memory, dpi=100, format="png")
    picture = Image.open(memory).convert("RGB")
    picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    picture.save(path, format="png", optimize=True)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[first : first + 2], 16) / 255 for first in (1, 3, 5))


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
            fold_in(keys, number),
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


def _spectrogram(samples: Any) -> Any:
    """Decibels of full scale (a sine of amplitude 1 is 0), frequencies by frames of 25 ms."""
    window = torch.hann_window(SAMPLE_RATE // 40, dtype=torch.float64)
    hop = max(SAMPLE_RATE // 100, len(samples) // 2000)
    signal = torch.from_numpy(samples).double()
    signal = torch.nn.functional.pad(signal, (len(window) // 2,) * 2)
    frames: Tensor = signal.unfold(0, len(window), hop) * window
    magnitude = torch.fft.rfft(frames).abs() * (2 / window.sum())
    return (20 * magnitude.clamp(min=1e-7).log10()).float().T.numpy()


def _outline(samples: Any) -> tuple[Any, Any, Any]:
    """Times, and the least and the most of the samples around each: a line that a page can show."""
    size = max(1, len(samples) // 2000)
    firsts = np.arange(0, len(samples), size)
    low, high = (one.reduceat(samples, firsts) for one in (np.minimum, np.maximum))
    return firsts / SAMPLE_RATE, low, high


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("``", "")


def _as_yaml(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is parameter.empty:
        return "..."
    if isinstance(default, tuple):
        return f"[{', '.join(f'{value:g}' for value in default)}]"
    if isinstance(default, bool) or default is None:
        return {None: "null", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, (int, float)) else str(default)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
