"""A step of DINO on a GPU: nothing in it makes the host wait."""

from __future__ import annotations

import pytest
import torch

from speechft.augment import make_keys
from speechft.methods import Dino, DinoConfig
from speechft.models import make_embedding


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("backbone", ["xvector-64", "ecapa-64", "resnet34-8"])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_a_step_never_waits_for_the_device(backbone: str, centering: str) -> None:
    config = DinoConfig(codes=4096, centering=centering, spec_augment=True, koleo_weight=0.1)
    method = Dino(make_embedding(backbone), config).cuda().train()
    method.stopwatch.cuda = True
    weights = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    waveforms = 0.1 * torch.randn(4, 96_000, device="cuda")
    lengths = torch.tensor([96_000, 80_000, 70_000, 50_000], device="cuda")

    def step(number: int) -> None:
        method.at_step(number, 10)
        method(waveforms, lengths, make_keys(0, number, torch.arange(4))).loss.backward()
        method.before_update()
        optimizer.step()
        optimizer.zero_grad()
        method.after_update()

    step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(weight.isfinite().all() for weight in weights)
