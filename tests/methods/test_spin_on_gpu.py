"""A step of Spin on a GPU: nothing in it makes the host wait."""

from __future__ import annotations

import pytest
import torch

from speechft import models
from speechft.augment import make_keys
from speechft.methods import Spin, SpinConfig


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("labelled", [False, True])
def test_a_step_never_waits_for_the_device(tmp_path, labelled: bool) -> None:
    if labelled:
        Spin(models.tiny(), SpinConfig(codes=16, size=8)).save(tmp_path)
    config = SpinConfig(
        codes=64, crop_seconds=3.0, augmentation="[Gain]",
        pseudo_labels=str(tmp_path) if labelled else None,
    )  # fmt: skip
    method = Spin(models.tiny(), config).cuda().train()
    method.stopwatch.cuda = True
    weights = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-4, fused=True)
    lengths = torch.tensor([80_000, 60_000, 50_000, 48_000], device="cuda")
    given = {"waveforms": 0.1 * torch.randn(4, 80_000, device="cuda"), "lengths": lengths}
    if labelled:
        given["frame_labels"] = torch.randint(16, (4, 249), device="cuda")

    keys = [make_keys(0, number, torch.arange(4)).cuda() for number in range(2)]

    def step(number: int) -> None:
        method(**given, keys=keys[number]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_update()
        method.monitors()

    step(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(weight.isfinite().all() for weight in weights)
