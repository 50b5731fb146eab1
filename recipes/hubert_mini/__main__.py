"""``python -m recipes.hubert_mini --work FOLDER``: from packages to ``FOLDER/hubert-mini``.

Installs and synthesizes the speech, trains through the stages, writes the encoder in float16 and
judges it. Everything that is done already is not done again: stopped, it goes on. Under ``torchrun
--nproc-per-node 2 -m recipes.hubert_mini`` the processes share each batch.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from recipes.hubert_mini.distil import Distillation, distil
from recipes.hubert_mini.pretrain import Stage, new_encoder, train
from recipes.hubert_mini.report import report
from recipes.hubert_mini.speech import prepare
from recipes.hubert_mini.stream import read_stream

STAGES = (
    Stage("mfcc", layer=None, clusters=100, steps=2000, seen_weight=(1.0, 0.1)),
    Stage("layer3", layer=3, clusters=250, steps=2000, learning_rate=7e-4, seed=1),
    Stage("layer4", layer=4, clusters=500, steps=4500, batch=16, seed=2),
    Stage("layer4-again", layer=4, clusters=500, steps=4500, batch=16, seed=3),
    Stage(
        "neighbours", layer=4, clusters=1000, steps=3500, learning_rate=7e-4, batch=16, seed=4,
        seen_weight=(1.0, 1.0), context=2, offsets=(-2, 0, 2), bfloat16=True,
    ),
)  # fmt: skip
WIDE = Distillation("wide", layer=3, steps=2400, seed=5, bfloat16=True)


def main() -> None:
    """Every stage, from where it stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/hubert-mini"))
    parser.add_argument("--threads", type=int, default=None, help="of this process")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work: Path = arguments.work
    if "WORLD_SIZE" in os.environ:  # an hour: the others wait while the first makes targets
        distributed.init_process_group(timeout=timedelta(hours=1))
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    if first:
        prepare(work)
    if distributed.is_initialized():
        distributed.barrier()
    speech = prepare(work)
    stream = read_stream(speech / "pretrain.jsonl")
    if first:
        print(f"{stream.total_frames / 50 / 3600:.2f} hours of speech")
    encoder = new_encoder()
    for stage in STAGES:
        encoder = train(stream, stage, encoder, work, device=arguments.device)
    encoder = distil(stream, WIDE, encoder, work, device=arguments.device)
    if not first:
        return
    encoder.half().save_pretrained(work / "hubert-mini")
    report(work / "hubert-mini", speech, work / "report")


if __name__ == "__main__":
    main()
