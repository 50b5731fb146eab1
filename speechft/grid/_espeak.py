"""espeak-ng in a process of its own: requests in, samples out. Run as a program by the engine.

In one process espeak does not say the same thing twice: it keeps state from call to call. Here it
is made ready once, and each request is said in a fork of that, which ends with it. So every
request finds the same state, at the cost of a fork rather than of a start.

A request is a line of JSON: text, voice, pitch, rate, range. The answer is a line of JSON, with
``samples`` (how many 16-bit samples follow) and ``rate``, or ``error``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

_SYNCHRONOUS, _UTF8, _CHARACTERS = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_OK = 0


def load() -> tuple[Any, int]:
    """The library of the wheel, and the rate of what it says."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = os.path.dirname(espeakng_loader.get_data_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng did not start with the data in {data}")
    return library, rate


def say(library: Any, request: dict[str, Any]) -> bytes:
    """The samples of a text, 16 bits each; raises ValueError where the voice is none."""
    if library.espeak_SetVoiceByName(request["voice"].encode()) != _OK:
        raise ValueError(f"espeak-ng has no voice {request['voice']!r}")
    for parameter, name in ((_RATE, "rate"), (_PITCH, "pitch"), (_RANGE, "range")):
        if request.get(name) is not None:
            library.espeak_SetParameter(parameter, int(request[name]), 0)
    said: list[bytes] = []

    def heard(samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            said.append(ctypes.string_at(samples, 2 * count))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    callback = kind(heard)  # kept by a name for as long as it is called
    library.espeak_SetSynthCallback(callback)
    text = request["text"].encode() + b"\0"
    state = library.espeak_Synth(text, len(text), 0, _CHARACTERS, 0, _UTF8, None, None)
    if state != _OK or library.espeak_Synchronize() != _OK:
        raise ValueError("espeak-ng failed on this text")
    return b"".join(said)


def serve() -> None:
    """Answer requests until there are none."""
    library, rate = load()
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        out.flush()
        child = os.fork()
        if child == 0:
            try:
                samples = say(library, json.loads(line))
                answer = json.dumps({"samples": len(samples) // 2, "rate": rate}).encode()
            except Exception as error:
                samples, answer = b"", json.dumps({"error": str(error)}).encode()
            out.write(answer + b"\n" + samples)
            out.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            out.write(
                json.dumps({"error": f"espeak-ng ended with status {status}"}).encode() + b"\n"
            )
        out.flush()


if __name__ == "__main__":
    serve()
