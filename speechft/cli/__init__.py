"""The command line: arguments to calls, and nothing else.

``speechft refine METHOD``, ``speechft transfer``, ``speechft two-step``, ``speechft iterate``,
``speechft evaluate``,
``speechft grid``, ``speechft augment``, ``speechft export``, ``speechft check``,
``speechft bench``, ``speechft doctor``. Exit codes: 0 done, 2 usage, 3 bad data, 4
diverged, collapsed or not trainable, 75 stopped by a signal and saved.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from speechft import __version__
from speechft.cli.commands import COMMANDS, UsageError
from speechft.cli.names import nearest

DONE, USAGE, BAD_DATA, DIVERGED, STOPPED = 0, 2, 3, 4, 75


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return DONE if arguments else USAGE
    if arguments[0] == "--version":
        print(f"speechft {__version__}")
        return DONE
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"no command {name!r}{nearest(name, COMMANDS)}", USAGE)
    try:
        return COMMANDS[name].run(rest)
    except SystemExit as stop:  # --help of a command
        return int(stop.code or 0)
    except UsageError as error:
        return _fail(f"{name}: {error}", USAGE)
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        return _fail(str(error), code)


def _code_of(error: Exception) -> int | None:
    from speechft import errors

    if isinstance(error, (errors.AudioError, errors.ManifestError)):
        return BAD_DATA
    if isinstance(error, errors.TrainingError):
        return DIVERGED
    if isinstance(error, errors.InterruptedRun):
        return STOPPED
    if isinstance(error, (errors.SpeechftError, argparse.ArgumentError)):
        return USAGE
    return None


def _fail(message: str, code: int) -> int:
    print(f"speechft: {message}", file=sys.stderr)
    return code


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: speechft COMMAND ...   (speechft COMMAND --help for its flags)",
            "",
            "Refine speech foundation models after pre-training.",
            "",
            *lines,
        ]
    )
