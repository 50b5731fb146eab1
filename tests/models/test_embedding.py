"""Embedding models: vectors that padding does not touch, folders that read back to the bit."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from speechft import models
from speechft.augment import SpecAugment, make_keys
from speechft.errors import ArgumentError, ClipTooShortError
from speechft.models import (
    DINOHead,
    EmbeddingModel,
    EmbeddingSpec,
    load_backbone,
    load_embedding,
    make_embedding,
)
from speechft.models.embedding import PARTS, EncoderFrames
from speechft.models.embedding_saving import is_embedding_folder

from .twins import noise, relative

NETWORKS = ("xvector-8", "ecapa-8", "resnet34-8")
KINDS = (*NETWORKS, "encoder")
LENGTHS = [9_000, 5_000, 4_000]


def made(kind: str, **changes) -> EmbeddingModel:
    """A small one, whose batch norms have statistics that are not the first ones."""
    spec = EmbeddingSpec(kind, **{"size": 16, "bands": 20, **changes})
    encoder = models.tiny("hubert") if kind == "encoder" else None
    model = make_embedding(spec, encoder=encoder)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.7, 1.3), (module.bias.data, -0.1, 0.1),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


def cut(waveforms: Tensor, index: int) -> Tensor:
    return waveforms[index : index + 1, : LENGTHS[index]]


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_parts(kind):
    model = made(kind)
    vectors = model(noise(3, 9_000), LENGTHS)
    assert vectors.shape == (3, 16)
    assert vectors.dtype == torch.float32
    assert (model.size, model.sample_rate) == (16, 16_000)
    assert PARTS == ("frames", "pooling", "affine")
    x: object = (noise(3, 9_000), torch.tensor(LENGTHS))
    for name in PARTS:
        part = model.part(name)
        assert part is getattr(model, name)
        x = part(*x) if isinstance(x, tuple) else part(x)
    torch.testing.assert_close(x, vectors)
    with pytest.raises(ArgumentError, match="part: no 'head'; there are frames, pooling, affine"):
        model.part("head")
    shortest = noise(1, model.minimum_samples)
    assert model(shortest).isfinite().all()
    with pytest.raises(ClipTooShortError):
        model(shortest[:, 1:])
    with pytest.raises(ClipTooShortError):
        model(noise(2, 9_000), [9_000, model.minimum_samples - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batch_mates_change_nothing(kind):
    model = made(kind)
    waveforms = noise(3, 9_000)
    for row, length in zip(waveforms, LENGTHS, strict=True):
        row[length:] = 100.0  # what is there is not looked at
    with torch.no_grad():
        together = model(waveforms, LENGTHS)
        longer = model(functional.pad(waveforms, (0, 7_000)), LENGTHS)
        alone = torch.cat([model(cut(waveforms, i)) for i in range(3)])
    assert relative(together, alone) <= 3e-6
    assert relative(longer, alone) <= 3e-6
    assert relative(alone[:1], alone[1:2]) > 1e-3  # the vectors do differ


@pytest.mark.parametrize("kind", NETWORKS)
def test_in_training_padding_is_no_part_of_the_statistics(kind):
    """A batch of equal lengths, and the same one with padding: one norm, one gradient."""
    waveforms = noise(3, 6_000)
    found = []
    for padding in (0, 5_000):
        model = made(kind).train()
        vectors = model(functional.pad(waveforms, (0, padding)), [6_000] * 3)
        vectors.square().sum().backward()
        norms = [b for n, b in model.named_buffers() if "running" in n]
        found.append(
            (vectors.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]),
             torch.cat([b.flatten() for b in norms]))
        )  # fmt: skip
    for one, other in zip(*found, strict=True):
        assert relative(one, other) <= 1e-4


def test_the_seed_makes_the_weights_and_nothing_else():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, three = (make_embedding("xvector-8", seed=seed).state_dict() for seed in (0, 0, 1))
    heads = [DINOHead(4, 8, hidden_size=6, bottleneck=3, seed=s).state_dict() for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["affine.0.weight"], three["affine.0.weight"])
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not torch.equal(heads[0]["codes"], heads[2]["codes"])


@pytest.mark.parametrize(
    ("spec", "pooled"),
    [
        (EmbeddingSpec("xvector-8"), "StatisticsPooling"),
        (EmbeddingSpec("resnet34-8"), "StatisticsPooling"),
        (EmbeddingSpec("ecapa-8"), "AttentiveStatisticsPooling"),
        (EmbeddingSpec("xvector-8", pooling="mean"), "MeanPooling"),
        (EmbeddingSpec("resnet34-8", pooling="attentive"), "AttentiveStatisticsPooling"),
        (EmbeddingSpec("ecapa-8", pooling="statistics"), "StatisticsPooling"),
    ],
)
def test_pooling_is_as_published_or_as_asked_for(spec, pooled):
    model = make_embedding(spec)
    assert type(model.pooling).__name__ == pooled
    kinds = [type(layer).__name__ for layer in model.affine]
    assert kinds == (["BatchNorm1d", "Linear"] if spec.backbone == "ecapa-8" else ["Linear"])


def test_published_channels():
    """Snyder et al. 2018: 512 and 1500; ECAPA's 1536 stays with 1024 channels."""
    sizes = {name: made(name, bands=40).frames.output_size for name in ("xvector", "xvector-512")}
    assert sizes == {"xvector": 1500, "xvector-512": 1500}
    wide = made("ecapa-1024").frames.output_size, made("ecapa-512").frames.output_size
    assert wide == (1536, 1536)
    assert made("ecapa-256").frames.output_size == 768


class TestEncoderFrames:
    def test_the_weighting_is_the_mean_at_first_and_learns(self):
        model = made("encoder")
        waveforms, lengths = noise(2, 6_000), [6_000, 4_000]
        frames, counts = model.frames(waveforms, lengths)
        output = model.encoder(waveforms, lengths)
        states = [*output.hidden_states[:-1], output.last_hidden_state]
        assert len(states) == 4
        torch.testing.assert_close(frames, sum(states) / 4)
        assert torch.equal(counts, output.lengths)
        with torch.no_grad():
            model.frames.layer_weights.copy_(torch.tensor([0.0, math.log(3.0), 0.0, -100.0]))
        mixed, _ = model.frames(waveforms, lengths)
        torch.testing.assert_close(mixed, 0.2 * states[0] + 0.6 * states[1] + 0.2 * states[2])
        mixed.square().sum().backward()
        assert model.frames.layer_weights.grad.abs().sum() > 0

    @pytest.mark.parametrize("layer", [0, 1, 3])
    def test_one_layer_is_that_layer(self, layer):
        model = made("encoder", layer=layer)
        waveforms = noise(2, 6_000)
        output = model.encoder(waveforms)
        wanted = output.last_hidden_state if layer == 3 else output.hidden_states[layer]
        torch.testing.assert_close(model.frames(waveforms, None)[0], wanted)
        assert not [n for n, _ in model.named_parameters() if "layer_weights" in n]

    @pytest.mark.parametrize("layer", [-1, 4])
    def test_a_layer_that_is_not_there(self, layer):
        with pytest.raises(ArgumentError, match=f"layer: wants 0 to 3, got {layer}"):
            EncoderFrames(models.tiny(), layer)


class TestSaving:
    @pytest.mark.parametrize("kind", NETWORKS)
    def test_a_network_reads_back_to_the_bit(self, tmp_path, kind):
        model = made(kind, pooling="attentive", normalize="utterance")
        model.save_pretrained(tmp_path / "model")
        again = load_embedding(tmp_path / "model")
        assert again.spec == model.spec
        assert not again.training
        one, two = model.state_dict(), again.state_dict()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        waveforms = noise(2, 6_000)
        assert torch.equal(model(waveforms, [6_000, 5_000]), again(waveforms, [6_000, 5_000]))

    @pytest.fixture
    def encoder_folder(self, tmp_path):
        models.tiny("hubert").save_pretrained(tmp_path / "encoder")
        return tmp_path / "encoder"

    def test_an_encoder_by_name_is_not_saved_along(self, tmp_path, encoder_folder):
        model = load_backbone(encoder_folder, size=8, layer=2)
        model.encoder_name = str(encoder_folder)
        model.save_pretrained(tmp_path / "model")
        weights = load_file(tmp_path / "model" / "model.safetensors")
        assert weights.keys() == {n for n in model.state_dict() if ".encoder." not in n}
        assert not (tmp_path / "model" / "encoder").exists()
        again = load_embedding(tmp_path / "model")
        assert again.encoder_name == str(encoder_folder)
        assert again.spec == EmbeddingSpec("encoder", size=8, layer=2)
        assert torch.equal(model(noise(1, 6_000)), again(noise(1, 6_000)))

        models.tiny("hubert", seed=1).save_pretrained(encoder_folder)
        with pytest.raises(ArgumentError, match="of other weights than those of today"):
            load_embedding(tmp_path / "model")

    def test_a_tuned_encoder_is_saved_along(self, tmp_path, encoder_folder):
        model = load_backbone(encoder_folder, size=8)
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.mul_(1.01)
        model.save_pretrained(tmp_path / "model")
        (encoder_folder / "config.json").unlink()  # it is not asked for
        again = load_embedding(tmp_path / "model")
        assert again.encoder_name is None
        one, two = model.state_dict(), again.state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert torch.equal(model(noise(1, 6_000)), again(noise(1, 6_000)))
        # And once more, from what was loaded.
        again.save_pretrained(tmp_path / "twice")
        assert torch.equal(
            load_embedding(tmp_path / "twice")(noise(1, 6_000)), again(noise(1, 6_000))
        )

    def test_missing_keys_and_weights_that_do_not_fit(self, tmp_path):
        folder = tmp_path / "model"
        made("xvector-8").save_pretrained(folder)
        assert is_embedding_folder(folder)
        text = (folder / "config.json").read_text()
        config = json.loads(text)
        for key in ("backbone", "size", "layer", "encoder"):
            rest = {name: value for name, value in config.items() if name != key}
            (folder / "config.json").write_text(json.dumps(rest))
            with pytest.raises(ArgumentError, match=f"config.json has no '{key}'"):
                load_embedding(folder)
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "hubert"}))
        assert not is_embedding_folder(folder)
        with pytest.raises(ArgumentError, match="holds no embedding model"):
            load_embedding(folder)
        (folder / "config.json").write_text("{")
        assert not is_embedding_folder(folder)
        (folder / "config.json").write_text(text)

        weights = load_file(folder / "model.safetensors")
        whole = dict(weights)
        del weights["affine.0.bias"]
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(ArgumentError, match=r"does not fit at affine\.0\.bias"):
            load_embedding(folder)
        save_file({**whole, "more": torch.zeros(1)}, folder / "model.safetensors")
        with pytest.raises(ArgumentError, match="does not fit at more"):
            load_embedding(folder)
        wide = {**whole, "affine.0.bias": torch.zeros(3)}
        save_file(wide, folder / "model.safetensors")
        with pytest.raises(ArgumentError, match=r"does not fit at affine\.0\.bias"):
            load_embedding(folder)

    def test_evaluation_takes_the_folder(self, tmp_path):
        """A vector an utterance is what a task is given: one layer of one frame."""
        from speechft.evaluation.run import evaluate
        from speechft.models.utterances import UtteranceEncoder

        made("xvector-8").save_pretrained(tmp_path / "model")
        wrapped = UtteranceEncoder(load_embedding(tmp_path / "model"))
        output = wrapped(noise(2, 6_000), [6_000, 5_000])
        assert output.last_hidden_state.shape == (2, 1, 16)
        assert wrapped.num_layers == 0
        report = evaluate(
            model=tmp_path / "model", tasks=["speaker"], data="embedded",
            output=tmp_path / "out", seeds=1,
        )  # fmt: skip
        assert report.results["speaker"].figures


class TestLoadBackbone:
    def test_from_scratch(self):
        model = load_backbone("resnet34-8", size=12, pooling="mean", seed=4)
        assert model.spec == EmbeddingSpec("resnet34-8", size=12, pooling="mean")
        assert not model.training
        alike = make_embedding(model.spec, seed=4)
        assert torch.equal(model.affine[0].weight, alike.affine[0].weight)

    def test_around_an_encoder(self):
        model = load_backbone("speechft/hubert-mini", size=12, layer=2)
        assert model.spec == EmbeddingSpec("encoder", size=12, layer=2)
        assert type(model.pooling).__name__ == "AttentiveStatisticsPooling"
        assert model.encoder is not None
        assert model.encoder_name is None  # whoever named it says so

    def test_a_folder_has_settings_of_its_own(self, tmp_path):
        model = made("xvector-8")
        model.save_pretrained(tmp_path / "xvector")
        masks = SpecAugment(1, (0, 5), 1, (0, 8))
        again = load_backbone(tmp_path / "xvector", size=99, spec_augment=masks)
        assert again.size == 16
        waveforms, keys = noise(2, 6_000), make_keys(0, 0, torch.tensor([1, 2]))
        assert torch.equal(again(waveforms), model(waveforms))
        assert not torch.equal(again(waveforms, None, keys), model(waveforms))
        assert torch.equal(model(waveforms, None, keys), model(waveforms))

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("xvektor", "xvektor"),
            ("xvector-12", "wants channels in eights, got 'xvector-12'"),
            ("xvector-wide", "no 'xvector-wide'; there are xvector, ecapa, resnet34"),
            ("ecapa-0", "wants channels in eights"),
        ],
    )
    def test_names_that_are_none(self, name, words):
        with pytest.raises(ArgumentError, match=words):
            load_backbone(name)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"backbone": "lstm"}, "backbone: no 'lstm'; there are xvector, ecapa, resnet34"),
        ({"size": 0}, "size: wants at least 1"),
        ({"bands": 0}, "bands: wants at least 1"),
        ({"pooling": "max"}, "pooling: wants one of mean, statistics, attentive; got 'max'"),
        ({"normalize": "all"}, "normalize: wants one of none, utterance, short_time"),
    ],
)
def test_specs_that_make_nothing(bad, words):
    with pytest.raises(ArgumentError, match=words):
        EmbeddingSpec(**{"backbone": "xvector", **bad})


def test_an_encoder_too_few_or_too_many():
    with pytest.raises(ArgumentError, match="encoder: does not go with the backbone 'encoder'"):
        make_embedding("encoder")
    with pytest.raises(ArgumentError, match="encoder: does not go with the backbone 'xvector-8'"):
        make_embedding("xvector-8", encoder=models.tiny())
    with pytest.raises(ArgumentError, match="spec_augment: is of log-mel"):
        make_embedding(
            "encoder", encoder=models.tiny(), spec_augment=SpecAugment(1, (0, 5), 1, (0, 8))
        )


class TestHead:
    def head(self, **changes) -> DINOHead:
        return DINOHead(6, 32, **{"hidden_size": 8, "bottleneck": 4, **changes})

    def test_logits_are_cosines(self):
        head, x = self.head(), 50 * noise(5, 6)
        hidden, codes = head.bottleneck(x).double(), head.codes.detach().double()
        wanted = [[float(h @ c / (h.norm() * c.norm())) for c in codes] for h in hidden.detach()]
        logits = head(x)
        torch.testing.assert_close(logits.detach().double(), torch.tensor(wanted).double())
        assert logits.abs().max() <= 1 + 1e-6
        with torch.no_grad():
            head.codes.mul_(torch.rand(32, 1) + 0.1)  # rows of any length are the same codes
            torch.testing.assert_close(head(x), logits.detach())
            torch.testing.assert_close(head.logits(1e-4 * head.bottleneck(x)), logits.detach())

    def test_the_mlp_is_as_published(self):
        """Cho et al.: 2048, 2048, 256, GELU; hyperion's with batch norm before it."""
        head = DINOHead(16, 64)
        shapes = [tuple(m.weight.shape) for m in head.mlp if isinstance(m, nn.Linear)]
        assert shapes == [(2048, 16), (2048, 2048), (256, 2048)]
        assert head.codes.shape == (64, 256)
        kinds = [type(m).__name__ for m in self.head(batch_norm=True, hidden_layers=1).mlp]
        assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear"]
        assert [type(m).__name__ for m in self.head(hidden_layers=0).mlp] == ["Linear"]
        weights = torch.cat([m.weight.flatten() for m in head.mlp if isinstance(m, nn.Linear)])
        assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
        assert not any(m.bias.any() for m in head.mlp if isinstance(m, nn.Linear))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_logits_are_float32_under_autocast(self, dtype):
        """Of one bottleneck, the same logits; halves would be 1 / 256 apart."""
        head, hidden = self.head(), noise(5, 4)
        with torch.autocast("cpu", dtype):
            found = head.logits(hidden)
            whole = head(noise(5, 6))
            of_half = head.logits(1e-4 * hidden.to(dtype))
        assert found.dtype == whole.dtype == torch.float32
        assert torch.equal(found, head.logits(hidden))
        torch.testing.assert_close(of_half, found, rtol=0, atol=0.02)

    def test_gradients(self):
        head = self.head().double()
        x = noise(3, 6, dtype=torch.float64).requires_grad_()
        # The logits are in float32, so differences are coarse.
        logits = head(x)
        logits[0, 0].backward()
        step, numeric = 1e-2, torch.zeros(6, dtype=torch.float64)
        for k in range(6):
            ends = []
            for sign in (1, -1):
                moved = x.detach().clone()
                moved[0, k] += sign * step
                ends.append(float(head(moved)[0, 0]))
            numeric[k] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(x.grad[0], numeric, rtol=2e-2, atol=1e-4)
        assert not x.grad[1:].any()
        assert head.codes.grad[0].any()
        assert not head.codes.grad[1:].any()

    @pytest.mark.parametrize(
        "bad",
        [{"size": 0}, {"codes": 1}, {"hidden_size": 0}, {"hidden_layers": -1}, {"bottleneck": 0}],
    )
    def test_sizes_out_of_range(self, bad):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            DINOHead(**{"size": 4, "codes": 8, **bad})


class TestAffinePart:
    """From what is pooled to the vector: one layer, a projector, or nothing."""

    def test_the_projector_is_three_layers_with_batch_norm(self):
        model = made("encoder", affine="projector", pooling="mean")
        x = noise(3, 9_000)
        pooled = model.pooled(x, LENGTHS)
        first, norm1, _, second, norm2, _, third = model.affine
        assert [layer.bias for layer in (first, second, third)] == [None] * 3
        assert [tuple(layer.weight.shape) for layer in (first, second, third)] == [
            (16, pooled.shape[1]), (16, 16), (16, 16)
        ]  # fmt: skip

        def normed(rows, norm):
            scaled = (rows - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
            return scaled * norm.weight + norm.bias

        hidden = normed(pooled @ first.weight.T, norm1).clamp(min=0)
        hidden = normed(hidden @ second.weight.T, norm2).clamp(min=0)
        torch.testing.assert_close(model(x, LENGTHS), hidden @ third.weight.T)

    @pytest.mark.parametrize("kind", ["xvector-8", "ecapa-8", "encoder"])
    def test_without_one_the_vector_is_what_is_pooled(self, kind):
        model = made(kind, affine="none")
        x = noise(3, 9_000)
        vectors = model(x, LENGTHS)
        assert torch.equal(vectors, model.pooled(x, LENGTHS))
        assert model.size == model.spec.size == vectors.shape[1] != 16

    @pytest.mark.parametrize("affine", ["projector", "none"])
    def test_padding_and_batch_mates_change_nothing(self, affine):
        model = made("encoder", affine=affine)
        x = noise(3, 9_000)
        together = model(x, LENGTHS)
        for index in range(3):
            assert relative(model(cut(x, index))[0], together[index]) < 1e-5

    @pytest.mark.parametrize("affine", ["projector", "none"])
    def test_what_is_written_is_what_is_read(self, tmp_path, affine):
        model = made("encoder", affine=affine)
        model.save_pretrained(tmp_path)
        again = load_backbone(tmp_path)
        assert again.spec == model.spec
        x = noise(3, 9_000)
        assert torch.equal(again(x, LENGTHS), model(x, LENGTHS))

    def test_folders_that_do_not_say_have_one_layer(self, tmp_path):
        """Those written before there was a choice."""
        model = made("xvector-8")
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["affine"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        x = noise(3, 9_000)
        assert torch.equal(load_embedding(tmp_path)(x, LENGTHS), model(x, LENGTHS))

    def test_another_kind_is_refused(self):
        with pytest.raises(ArgumentError, match="affine: wants one of linear, projector, none"):
            EmbeddingSpec("xvector", affine="mlp")
