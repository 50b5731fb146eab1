"""Augmentations in a module without keys, and in a DataLoader."""

from __future__ import annotations

import copy
import pickle
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from augment.test_face import NoValueIsRead
from speechft import lengths as lengths_module
from speechft.augment import Babble, Compose, Gain, Pitch, Speed, make_keys
from speechft.augment import base as base_module
from speechft.augment import crop as crop_module
from speechft.augment.adapters import AugmentingCollate, Stateful
from speechft.augment.crop import RandomCrop
from speechft.data import Sample, SpeechDataset, collate, embedded_corpus
from speechft.errors import ArgumentError, ArgumentTypeError, LengthError


def waveforms(count: int = 4, steps: int = 300) -> Tensor:
    return torch.randn(count, steps, generator=torch.Generator().manual_seed(0)) * 0.1


def make() -> Stateful:
    return Stateful(Compose([Gain(), Pitch()]), seed=5)


# Stateful.


def test_each_call_and_row_is_perturbed_in_its_own_way() -> None:
    module = Stateful(Gain(), seed=5)
    gains = torch.cat([module(torch.ones(4, 50))[:, 0] for _ in range(50)])
    assert gains.unique().numel() == 200
    assert int(module.calls) == 50
    for other in (Stateful(Gain(), seed=6), Stateful(Gain(), seed=5, rank=1)):
        assert not torch.isin(other(torch.ones(4, 50))[:, 0], gains).any()
    same = Stateful(Gain(), seed=5, rank=0)
    assert torch.equal(same(torch.ones(4, 50))[:, 0], gains[:4])
    # Its keys are those that it says.
    keys = make_keys(5, 0, 49 * 2**32 + torch.arange(4))
    assert torch.equal(Gain()(torch.ones(4, 50), None, keys)[0][:, 0], gains[-4:])


def test_a_resumed_run_is_the_same_run() -> None:
    whole, first, second = make(), make(), make()
    x = waveforms()
    expected = [whole(x) for _ in range(6)]
    got = [first(x) for _ in range(3)]
    assert set(first.state_dict()) == {"calls"}
    model, resumed = nn.Sequential(first), nn.Sequential(second)
    resumed.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    got += [resumed(x) for _ in range(3)]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(copy.deepcopy(second)(x), pickle.loads(pickle.dumps(whole))(x))


def test_eval_passes_everything_and_counts_nothing() -> None:
    module = make()
    x = waveforms().requires_grad_()
    assert not module(x).requires_grad
    module.eval()
    assert module(x) is x
    lengths = torch.tensor([300, 1, 5, 300])
    out = module(x, lengths)
    assert out[0] is x
    assert out[1] is lengths
    assert int(module.calls) == 1
    module.train()
    assert not torch.equal(module(x), x)


def test_a_channel_is_kept() -> None:
    x, lengths = waveforms(), torch.tensor([300, 250, 7, 300])
    for given in (None, lengths):
        expected, got = make()(x, given), make()(x[:, None], given)
        if given is None:
            assert torch.equal(got, expected[:, None])
        else:
            assert torch.equal(got[0], expected[0][:, None])
            assert torch.equal(got[1], lengths)
    y, after = Stateful(Speed((0.5,)))(x[:, None], lengths)
    assert y.shape == (4, 1, 600)
    assert after.tolist() == [600, 500, 14, 600]


def test_what_changes_lengths_wants_them() -> None:
    x = waveforms()
    for augmentation in (Speed(), RandomCrop(0.01), Compose([Gain(), Speed()])):
        module = Stateful(augmentation)
        with pytest.raises(ArgumentError, match=r"lengths: wants the samples of each .* got None"):
            module(x)
        assert int(module.calls) == 0
        _, after = module(x, [300] * 4)
        assert after.shape == (4,)


def test_the_count_is_not_cast_nor_trained() -> None:
    module = make().half()
    assert module.calls.dtype == torch.int64
    assert not list(module.parameters())
    x = waveforms()
    assert torch.equal(module(x), make()(x))


def test_a_gpu_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (base_module, crop_module):
        monkeypatch.setattr(each, "values_are_at_hand", lambda tensor: False)
    for each in (base_module, lengths_module):
        monkeypatch.setattr(each, "values_are_checked", lambda tensor: False)
    module = Stateful(RandomCrop((0.01, 0.015)))
    x, lengths = waveforms(), torch.full((4,), 300)
    with NoValueIsRead():
        y, _ = module(x, lengths)
    assert y.shape == (4, 240)
    assert int(module.calls) == 1


def test_traces_to_one_graph_that_counts() -> None:
    module, plain = (Stateful(RandomCrop(0.01)) for _ in range(2))
    traced = torch.compile(module, backend="eager", fullgraph=True)
    x, lengths = waveforms(), torch.full((4,), 300)
    for _ in range(3):
        assert torch.equal(traced(x, lengths)[0], plain(x, lengths)[0])
    assert int(module.calls) == 3


def test_the_rank_is_asked_for_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    x = waveforms()
    default, here, there = Stateful(Gain()), Stateful(Gain(), rank=0), Stateful(Gain(), rank=3)
    assert torch.equal(default(x), here(x))
    there(x)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    assert torch.equal(default(x), there(x))
    here_again = here(x)
    assert not torch.equal(there(x), here_again)


def test_bad_arguments_of_stateful() -> None:
    with pytest.raises(ArgumentTypeError, match=r"augmentation: wants .* got ReLU"):
        Stateful(nn.ReLU())  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"seed: wants an integer, got 1\.0"):
        Stateful(Gain(), seed=1.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="rank: wants at least 0, got -1"):
        Stateful(Gain(), rank=-1)
    module, x = make(), waveforms()
    with pytest.raises(ArgumentError, match=r"waveforms: wants shape .* got \(4, 2, 150\)"):
        module(x.view(4, 2, 150))
    with pytest.raises(ArgumentError, match=r"waveforms: wants shape \(B, T\)"):
        module(x[0])
    for wrong in (x.long(), x.numpy()):
        with pytest.raises(ArgumentTypeError, match="waveforms: wants floats"):
            module(wrong)
    with pytest.raises(LengthError, match="lengths"):
        module(x, [301] * 4)
    assert int(module.calls) == 0
    assert repr(Stateful(Gain(), seed=2, rank=1)).startswith("Stateful(\n  seed=2, rank=1")


# AugmentingCollate.


class Noises(Dataset[Sample]):
    """Noise of any length, keyed by its place."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        return Sample(
            id=str(index),
            index=index,
            key=1000 + index,
            waveform=torch.randn(200 + 37 * index, generator=generator),
            factors=torch.tensor([index % 3]),
        )


def batches(function: Any, *, epoch: int = 0, **options: Any) -> list[Any]:
    function.set_epoch(epoch)
    return list(DataLoader(Noises(), collate_fn=function, **{"batch_size": 4, **options}))


def assert_same(got: list[Any], expected: list[Any]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert set(a) == set(b)
        for name, value in a.items():
            same = torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name]
            assert same, name


def test_the_batch_is_perturbed_by_its_keys() -> None:
    augmentation = Compose([Gain(), Speed()])
    function = AugmentingCollate(augmentation, seed=3)
    function.set_epoch(2)
    samples = [Noises()[index] for index in (1, 5, 9)]
    plain, batch = collate(samples), function(samples)
    keys = make_keys(3, 2, plain["keys"])
    expected, lengths = augmentation(plain["waveforms"], plain["lengths"], keys)
    assert torch.equal(batch["waveforms"], expected)
    assert torch.equal(batch["lengths"], lengths)
    assert not torch.equal(lengths, plain["lengths"])
    for name in ("keys", "indices", "factors"):
        assert torch.equal(batch[name], plain[name])
    assert batch["ids"] == plain["ids"]


def test_workers_change_no_bits_and_epochs_do() -> None:
    function = AugmentingCollate(Compose([Gain(), Speed()]))
    expected = [batches(function, epoch=epoch) for epoch in range(2)]
    assert not torch.equal(expected[0][0]["waveforms"], expected[1][0]["waveforms"])
    # Workers that live on see the epoch change.
    loader = DataLoader(
        Noises(), batch_size=4, collate_fn=function, num_workers=2, persistent_workers=True
    )
    for epoch in range(2):
        function.set_epoch(epoch)
        assert_same(list(loader), expected[epoch])
    # Nor does the batch in which a sample is.
    alone = batches(function, epoch=1, batch_size=1)[5]
    together = expected[1][1]
    n = int(alone["lengths"])
    assert torch.equal(alone["waveforms"][0], together["waveforms"][1, :n])


def test_nothing_global_is_changed() -> None:
    function = AugmentingCollate(Compose([Gain(), Babble()]))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    function([Noises()[0], Noises()[1]])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_an_epoch_of_their_own(twin_of: Any) -> None:
    function = AugmentingCollate(Gain(), seed=4)
    function.set_epoch(7)
    twin = twin_of(function)
    samples = [Noises()[0]]
    assert torch.equal(twin(samples)["waveforms"], function(samples)["waveforms"])
    twin.set_epoch(8)
    assert not torch.equal(twin(samples)["waveforms"], function(samples)["waveforms"])
    assert twin._epoch.is_shared()


def test_a_dataset_of_speech() -> None:
    data = SpeechDataset(embedded_corpus().filter(language="en"))
    function = AugmentingCollate(RandomCrop(1.0))
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=function)))
    assert batch["waveforms"].shape == (4, 16000)
    assert batch["lengths"].tolist() == [16000] * 4


def collate_otherwise(samples: list[Sample]) -> UserDict[str, Any]:
    batch = UserDict(collate(samples))
    batch["more"] = 1
    return batch


def test_any_collate_function() -> None:
    kept = collate_otherwise([Noises()[0]])
    function = AugmentingCollate(Gain(), lambda samples: kept)
    batch = function([Noises()[0]])
    assert isinstance(batch, UserDict)
    assert batch["more"] == 1
    assert torch.equal(kept["waveforms"][0], Noises()[0]["waveform"])  # not written to
    assert not torch.equal(batch["waveforms"], kept["waveforms"])


def test_bad_arguments_of_the_collate_function() -> None:
    with pytest.raises(ArgumentTypeError, match=r"augmentation: wants .* got function"):
        AugmentingCollate(collate)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="collate_function: wants a function, got int"):
        AugmentingCollate(Gain(), 3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="seed: wants an integer"):
        AugmentingCollate(Gain(), seed="3")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="epoch: wants an integer"):
        AugmentingCollate(Gain()).set_epoch(0.5)  # type: ignore[arg-type]
    without = AugmentingCollate(Gain(), lambda samples: {"waveforms": 0, "lengths": 0})
    with pytest.raises(ArgumentError, match=r"collate_function: .* there are no keys"):
        without([])
    with pytest.raises(ArgumentError, match="samples: is empty"):
        AugmentingCollate(Gain())([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_stateful_on_a_gpu() -> None:
    plain, module = Stateful(RandomCrop(0.01)), Stateful(RandomCrop(0.01)).cuda()
    x, lengths = waveforms(), torch.full((4,), 300)
    on_gpu = x.cuda(), lengths.cuda()
    module(*on_gpu)
    plain(x, lengths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got, _ = module(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), plain(x, lengths)[0])
