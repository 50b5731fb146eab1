"""The cases and peers of ``temporal_idm`` compute what they are timed for."""

from __future__ import annotations

import pytest
import torch
from speechft.bench import machine, registry
from speechft.bench.peers import temporal_idm as peers
from torch import Tensor

from speechft import reference as R


@pytest.mark.parametrize("peer", [peers.by_difference, peers.by_cdist])
@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_peer_agrees_with_the_reference(peer, sigma):
    x = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0)).double() / 3

    def both(op, **settings) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        value = op(leaf, sigma=sigma, margin=1.1, **settings)
        return [value, *torch.autograd.grad(value.sum(), leaf)]

    for got, want in zip(both(peer), both(R.temporal_idm, reduction="none"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", registry.cases("temporal_idm"), ids=lambda case: case.name)
def test_every_case_is_sound(case):
    figures = machine.Machine(case.device, "a machine", 1e10, {torch.float32: 1e11}, 1e9, "given")
    floors = [case.floor(figures, mode) for mode in (registry.FORWARD, registry.BOTH)]
    assert 0 < floors[0].milliseconds < floors[1].milliseconds
    if case.device == "cpu":
        exact = case.truth(case.make(True).to("cpu", torch.float64))
        for name, provider in case.providers.items():
            if provider.needs:
                pytest.importorskip(provider.needs)
            lot = provider.at_once or len(exact)
            inputs = case.make(True)
            parts = [provider.op(inputs.samples(k, k + lot)) for k in range(0, len(exact), lot)]
            error = (torch.cat(parts).double() - exact).abs().max() / exact.abs().max()
            assert error < 1e-3, name
