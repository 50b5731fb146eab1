"""How much of a step of LASER or Spin its loss takes.

    python -m recipes.content_step --method laser --model base --seconds 12 --batch 8

Random waveforms, as many frames as the seconds have (T = 600 in 12 s), the published settings.
``base`` is a HuBERT of the size of HuBERT base with random weights. The loss is everything from the
encoder's frames to their gradient, forward and backward; how much of it is the projection of the
frames is measured beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import HubertConfig, HubertModel

from speechft.augment import make_keys
from speechft.methods import get
from speechft.methods.content import ContentMethod, project
from speechft.models import Encoder, EncoderOutput, load, wrap


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=("laser", "spin"), default="laser")
    parser.add_argument("--model", default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    kind: Any = get(arguments.method)
    method: ContentMethod = kind(encoder(arguments.model)).train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-5)
    samples = round(arguments.seconds * method.encoder.sample_rate)
    batch = {
        "waveforms": 0.1 * torch.randn(arguments.batch, samples),
        "lengths": torch.full((arguments.batch,), samples),
    }
    walls: list[float] = []
    losses: list[tuple[float, float]] = []
    for number in range(arguments.steps + 1):
        batch["keys"] = make_keys(0, number, torch.arange(arguments.batch))
        start = time.perf_counter()
        method(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        walls.append(time.perf_counter() - start)
        losses.append(of_loss(method, batch))
    wall, loss, projection = (  # one warms up
        statistics.median(times[1:]) for times in (walls, *zip(*losses, strict=True))
    )
    frames = int(method.encoder.frame_lengths(batch["lengths"])[0])
    print(
        f"{arguments.method} on {arguments.model}, batch {arguments.batch}, {frames} frames, "
        f"{torch.get_num_threads()} threads: a step {wall:.2f} s, its loss {loss:.3f} s "
        f"({loss / wall:.1%}), of which the projection {projection:.3f} s; without it "
        f"{(loss - projection) / wall:.1%}; medians of {arguments.steps}"
    )


def of_loss(method: Any, batch: Mapping[str, Tensor]) -> tuple[float, float]:
    """Seconds from frames to their gradient, and how many of them project the frames."""
    views = method.views(batch)
    frames = {}
    with torch.no_grad():
        for name in method.encoded:
            found = method.encoder(*views[name])
            frames[name] = replace_frames(found)
    start = time.perf_counter()
    torch.autograd.backward(method.objective(batch, views, frames).loss)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for output in frames.values():
        projected = project(method.connector, output.last_hidden_state)
        torch.autograd.backward(projected, projected.detach())
    projection = time.perf_counter() - start
    method.zero_grad()
    return seconds, projection


def replace_frames(output: EncoderOutput) -> EncoderOutput:
    """The same, and its last layer wants a gradient."""
    return output._replace(last_hidden_state=output.last_hidden_state.clone().requires_grad_())


def encoder(name: str) -> Encoder:
    """What ``load`` has, or a HuBERT base that knows nothing."""
    if name != "base":
        return load(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return wrap(HubertModel(HubertConfig()))


if __name__ == "__main__":
    main()
