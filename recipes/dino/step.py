"""Where the time of a step of DINO goes, and how much speech goes through it.

    python -m recipes.dino.step --model ecapa-512 --batch 16

Random waveforms of 8 s, the paper's crops and augmentation. On a GPU the step runs with
synchronisation made an error, so a figure says that nothing in it waits for the device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from speechft.augment import make_keys
from speechft.methods import Dino, DinoConfig
from speechft.models import load_backbone

SECONDS = 8.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ecapa-512")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--codes", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = Dino(load_backbone(arguments.model), DinoConfig(codes=arguments.codes))
    method.to(device).train()
    method.stopwatch.cuda = device.type == "cuda"
    method._full = (True, True)
    optimizer = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad], lr=1e-4, fused=device.type == "cuda"
    )
    samples = round(SECONDS * method.encoder.sample_rate)
    waveforms = 0.1 * torch.randn(arguments.batch, samples, device=device)
    lengths = torch.full((arguments.batch,), samples, device=device)

    def step(number: int) -> None:
        keys = make_keys(0, number, torch.arange(arguments.batch))
        with torch.autocast(device.type, torch.bfloat16, arguments.precision == "bfloat16"):
            loss = method(waveforms, lengths, keys).loss
        loss.backward()
        method.before_update()
        optimizer.step()
        optimizer.zero_grad()
        method.after_update()

    step(0)
    method.stopwatch.reset()
    with no_waiting(device):
        walls = [timed(partial(step, n), device) for n in range(1, arguments.steps + 1)]
    phases = method.stopwatch.seconds()
    wall = statistics.median(walls)
    total = sum(walls)
    hours = arguments.batch * SECONDS / wall
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{arguments.model}, batch {arguments.batch}, K {arguments.codes}, {name}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(f"step {wall:.3f} s (median of {len(walls)})")
    for phase in ("augmentation", "loss"):
        print(f"{phase:<13} {phases[phase] / total:6.1%} of the step (loss: forward only)")
    print(f"{hours:.0f} hours of speech an hour")


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call; the wait for the GPU is outside of what must not wait."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
    return time.perf_counter() - start


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On a GPU, what makes the host wait is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
