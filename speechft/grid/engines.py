"""Speech synthesizers behind one small interface: (text, voice, seed, controls) to samples.

====================  =============================================  ===============================
engine                what it needs                                  controls
====================  =============================================  ===============================
``espeak-ng``         ``pip install espeakng-loader``                pitch 0..99, rate (words a
                                                                     minute), range 0..99, accent
                                                                     (a language)
``flite``             the program                                    stretch, of durations
``festival``          the program, and a voice                       stretch, of durations
``piper``             ``pip install piper-tts``, and a voice's file  length_scale
``command``           any program that writes a WAV file             what its template names
====================  =============================================  ===============================

All but piper say the same samples each time; a command is what it is. A grid keeps what was said,
so it is the same grid on every run.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from speechft.errors import ArgumentError, SpeechftError

Controls = Mapping[str, Any]
_TIMEOUT = 120.0


class EngineError(SpeechftError, ValueError):
    """An engine is not there, has no such voice, or could not say a text."""


class Spoken(NamedTuple):
    """What an engine said: float32 of shape (n,), full scale 1, and its rate in Hz."""

    samples: npt.NDArray[np.float32]
    rate: int


class Engine(ABC):
    """A synthesizer. One of your own implements :meth:`speak` and :meth:`version`.

    Attributes:
        name: of the engine, part of what a cell is known by.
        controls: the names that :meth:`speak` takes beside the text, the voice and the seed.
    """

    name: str
    controls: tuple[str, ...] = ()

    @abstractmethod
    def speak(self, text: str, voice: str, seed: int, controls: Controls) -> Spoken:
        """Say a text. Called from several threads at a time.

        Raises:
            EngineError: no such voice, or a text that cannot be said.
        """

    @abstractmethod
    def version(self) -> str:
        """Of the engine: what an older one said is said again.

        Raises:
            EngineError: the engine is not installed, and how to install it.
        """

    def voices(self) -> list[str]:
        """The voices that it has; empty where it cannot say."""
        return []


class EspeakNG(Engine):
    """espeak-ng from its wheel; no program and no rights are needed.

    A voice is a language and a variant, such as ``en-us+f2`` or ``fr+Annie``. It is a formant
    synthesizer: its variants are clearly distinct, and none sounds like a person.

    The control ``accent`` is a language in place of the voice's own: ``en-us+f2`` with the accent
    ``en-gb-scotland`` is said as ``en-gb-scotland+f2``, by the same vocal tract.
    """

    name = "espeak-ng"
    controls = ("pitch", "rate", "range", "accent")

    def __init__(self) -> None:
        self._local = threading.local()

    def version(self) -> str:
        """See :class:`Engine`."""
        from importlib import metadata

        try:
            return metadata.version("espeakng-loader")
        except metadata.PackageNotFoundError:
            raise EngineError(
                "espeak-ng is not here; pip install 'speechft[grid]', or espeakng-loader alone"
            ) from None

    def voices(self) -> list[str]:
        """English in every variant."""
        return [f"en-us+{name}" for name in sorted(self._variants())]

    def speak(self, text: str, voice: str, seed: int, controls: Controls) -> Spoken:
        """See :class:`Engine`."""
        _, plus, variant = voice.partition("+")
        # espeak itself says an unknown variant in the language's own voice.
        if variant and variant not in self._variants():
            raise EngineError(f"espeak-ng has no voice {voice!r}: no variant {variant!r}")
        request = {"text": text, "voice": voice, **controls}
        accent = request.pop("accent", None)
        if accent is not None:
            if "+" in str(accent):
                raise EngineError(f"espeak-ng has no accent {accent!r}: wants a language alone")
            request["voice"] = f"{accent}{plus}{variant}"
        server = self._server()
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
            answer = json.loads(server.stdout.readline() or "{}")
            if "samples" in answer:
                raw = server.stdout.read(2 * answer["samples"])
                samples = np.frombuffer(raw, dtype="<i2").astype(np.float32) / np.float32(32768)
                return Spoken(samples, answer["rate"])
        except (OSError, json.JSONDecodeError) as error:
            answer = {"error": f"espeak-ng's process ended: {error}"}
        reason = answer.get("error", "espeak-ng's process ended")
        if accent is not None and "has no voice" in reason:
            reason = f"espeak-ng has no accent {accent!r}: wants a language, as 'en-gb-scotland' is"
        raise EngineError(reason)

    def _variants(self) -> set[str]:
        self.version()
        import espeakng_loader

        folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        return {path.name for path in folder.iterdir()}

    def _server(self) -> subprocess.Popen[bytes]:
        """This thread's process, started when it is wanted."""
        server: subprocess.Popen[bytes] | None = getattr(self._local, "server", None)
        if server is None or server.poll() is not None:
            self.version()
            program = [sys.executable, str(Path(__file__).with_name("_espeak.py"))]
            server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._local.server = server
        return server


class Command(Engine):
    """Any program that writes a WAV file.

    Args:
        template: the command, in which ``{text}``, ``{voice}``, ``{seed}``, ``{out}`` and the names
            of controls in braces are replaced; ``{out}`` is the file to write. Without ``{text}``
            the text is its input. No shell is between.
        name: of the engine, part of what a cell is known by.

    Raises:
        ArgumentError: a template without ``{out}``.
    """

    def __init__(self, template: str, *, name: str = "command") -> None:
        self.words = shlex.split(template)
        if not any("{out}" in word for word in self.words):
            raise ArgumentError("template", f"wants {{out}}, the file to write, got {template!r}")
        self.template, self.name = template, name
        known = ("text", "voice", "seed", "out")
        fields = {part.split("}")[0] for word in self.words for part in word.split("{")[1:]}
        self.controls = tuple(sorted(fields - set(known)))

    def version(self) -> str:
        """See :class:`Engine`: the template, as a program does not say its own."""
        if shutil.which(self.words[0]) is None:
            raise EngineError(
                f"there is no program {self.words[0]!r}; install it, or give its path"
            )
        return self.template

    def speak(self, text: str, voice: str, seed: int, controls: Controls) -> Spoken:
        """See :class:`Engine`."""
        import soundfile

        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "said.wav"
            values = {"text": text, "voice": voice, "seed": seed, "out": out, **controls}
            words = [self._filled(word, values) for word in self.words]
            try:
                done = subprocess.run(
                    words, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise EngineError(f"{words[0]}: {error}") from error
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
                raise EngineError(f"{words[0]} ended with code {done.returncode}: {last[:200]}")
            try:
                samples, rate = soundfile.read(out, dtype="float32", always_2d=True)
            except (OSError, soundfile.LibsndfileError) as error:
                raise EngineError(f"{words[0]} wrote no audio to {{out}}: {error}") from error
        return Spoken(np.ascontiguousarray(samples.mean(axis=1)), int(rate))

    @staticmethod
    def _filled(word: str, values: Mapping[str, Any]) -> str:
        for name, value in values.items():
            word = word.replace("{" + name + "}", str(value))
        return word


class Flite(Command):
    """flite: voices kal, kal16, awb, rms, slt."""

    def __init__(self) -> None:
        super().__init__(
            "flite -voice {voice} --setf duration_stretch={stretch} -t {text} -o {out}",
            name="flite",
        )

    def speak(self, text: str, voice: str, seed: int, controls: Controls) -> Spoken:
        """See :class:`Engine`. flite itself says an unknown voice in its own."""
        known = self.voices()
        if voice not in known:
            raise EngineError(f"flite has no voice {voice!r}; it has {', '.join(known)}")
        return super().speak(text, voice, seed, {"stretch": 1.0, **controls})

    def voices(self) -> list[str]:
        """See :class:`Engine`."""
        self.version()
        done = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=False)
        return done.stdout.partition(":")[2].split()


class Festival(Command):
    """festival's ``text2wave``: voices by their names in Scheme, such as ``kal_diphone``."""

    def __init__(self) -> None:
        super().__init__(
            "text2wave -eval (voice_{voice}) -eval '(Parameter.set (quote Duration_Stretch) "
            "{stretch})' -o {out}",
            name="festival",
        )

    def speak(self, text: str, voice: str, seed: int, controls: Controls) -> Spoken:
        """See :class:`Engine`."""
        return super().speak(text, voice, seed, {"stretch": 1.0, **controls})


class Piper(Command):
    """piper: a voice is the path of its ``.onnx`` file."""

    def __init__(self) -> None:
        super().__init__(
            "piper --model {voice} --length-scale {length_scale} --output_file {out}", name="piper"
        )

    def speak(self, text: str, voice: str, seed: int, controls: Controls) -> Spoken:
        """See :class:`Engine`."""
        return super().speak(text, voice, seed, {"length_scale": 1.0, **controls})


ENGINES: dict[str, Callable[[], Engine]] = {
    "espeak-ng": EspeakNG,
    "flite": Flite,
    "festival": Festival,
    "piper": Piper,
}


def engine(name: str) -> Engine:
    """An engine by its name, or a command, which has ``{out}`` in it.

    Raises:
        ArgumentError: neither.
    """
    if name in ENGINES:
        return ENGINES[name]()
    if "{out}" in name:
        return Command(name)
    raise ArgumentError(
        "engine",
        f"wants one of {', '.join(ENGINES)}, or a command with {{out}} in it; got {name!r}",
    )


def check_voices(voices: Sequence[str], of: Engine) -> None:
    """Raise where the engine can say which voices it has, and these are others."""
    known = of.voices()
    if isinstance(of, EspeakNG) or not known:
        return  # espeak-ng: any language with any variant, met when it speaks
    for voice in voices:
        if voice not in known:
            raise EngineError(f"{of.name} has no voice {voice!r}; it has {', '.join(known)}")
