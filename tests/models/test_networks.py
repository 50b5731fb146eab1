"""Networks of frames: their layers by definition, their sizes, and padding that changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from speechft import Lengths
from speechft.errors import ArgumentError, ArgumentTypeError, ClipTooShortError, LengthError
from speechft.models.networks import ECAPA, ResNet34, XVector
from speechft.models.networks._frames import MaskedBatchNorm
from speechft.pooling import AttentiveStatisticsPooling, StatisticsPooling

SMALL = {
    "xvector": lambda: XVector(12, 16, 24),
    "ecapa": lambda: ECAPA(12, 16, 24, scale=4, bottleneck=6),
    "resnet": lambda: ResNet34(12, 4),
}
each_network = pytest.mark.parametrize("name", SMALL)
LENGTHS = [45, 30, 17]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name: str) -> nn.Module:
    """With affine parameters and running statistics of the norms that are not the first ones."""
    torch.manual_seed(0)
    network = SMALL[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# Definitions: one utterance (F, T), no padding, written with the names of the weights alone.


class Weights:
    def __init__(self, network: nn.Module) -> None:
        self.of = {name: tensor.detach().double() for name, tensor in network.state_dict().items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        of = [self.of[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, weight, bias = (tensor.view(-1, *[1] * (x.dim() - 1)) for tensor in of)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def layer(self, x: Tensor, name: str, offsets: list[int]) -> Tensor:
        """Frames at these offsets spliced, one affine map, ReLU, norm; zeros beyond the ends."""
        weight, T = self.of[f"{name}.conv.weight"], x.shape[1]
        y = self.of[f"{name}.conv.bias"][:, None].expand(-1, T)
        for column, offset in enumerate(offsets):
            moved = torch.zeros_like(x)
            for t in range(T):
                if 0 <= t + offset < T:
                    moved[:, t] = x[:, t + offset]
            y = y + weight[:, :, column] @ moved
        return self.norm(y.clamp(min=0), f"{name}.norm")

    def affine(self, x: Tensor, name: str) -> Tensor:
        return self.of[f"{name}.weight"].flatten(1) @ x + self.of[f"{name}.bias"].view(
            -1, *[1] * (x.dim() - 1)
        )


def xvector_by_definition(network: nn.Module, x: Tensor) -> Tensor:
    w = Weights(network)
    contexts = [[-2, -1, 0, 1, 2], [-2, 0, 2], [-3, 0, 3], [0], [0]]
    for index, offsets in enumerate(contexts):
        span = offsets[-1]
        x = w.layer(x, f"layers.{index}", offsets)[:, span : x.shape[1] - span]
    return x


def ecapa_by_definition(network: nn.Module, x: Tensor) -> Tensor:
    w = Weights(network)
    outputs = [w.layer(x, "first", [-2, -1, 0, 1, 2])]
    for index, dilation in enumerate((2, 3, 4)):
        name, before = f"blocks.{index}", sum(outputs)
        y = w.layer(before, f"{name}.before", [0])
        width, scales = len(y) // 4, []
        for i in range(4):
            piece = y[i * width : (i + 1) * width]
            if i > 1:
                piece = piece + scales[-1]
            if i > 0:
                piece = w.layer(piece, f"{name}.scales.{i - 1}", [-dilation, 0, dilation])
            scales.append(piece)
        y = w.layer(torch.cat(scales), f"{name}.after", [0])
        hidden = w.affine(y.mean(1), f"{name}.squeeze").clamp(min=0)
        outputs.append(y * w.affine(hidden, f"{name}.excite").sigmoid()[:, None] + before)
    return w.affine(torch.cat(outputs[1:]), "aggregate").clamp(min=0)


def resnet_by_definition(network: nn.Module, x: Tensor) -> Tensor:
    w = Weights(network)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = w.of[f"{name}.weight"]
        return functional.conv2d(x[None], weight, None, stride, weight.shape[2] // 2)[0]

    y = w.norm(conv(x.T[None], "stem"), "norm").clamp(min=0)
    block = 0
    for stage, count in enumerate((3, 4, 6, 3)):
        for place in range(count):
            name, stride = f"blocks.{block}", 2 if stage and not place else 1
            inner = w.norm(conv(y, f"{name}.conv1", stride), f"{name}.norm1").clamp(min=0)
            inner = w.norm(conv(inner, f"{name}.conv2"), f"{name}.norm2")
            if stride == 2:
                y = w.norm(conv(y, f"{name}.shortcut", 2), f"{name}.shortcut_norm")
            y, block = (inner + y).clamp(min=0), block + 1
    return y.transpose(1, 2).flatten(0, 1)  # (C, F', T')


DEFINITIONS = {
    "xvector": xvector_by_definition,
    "ecapa": ecapa_by_definition,
    "resnet": resnet_by_definition,
}


@each_network
def test_utterances_of_a_batch_are_their_definition(name):
    network, x = made(name).eval().double(), noise(3, 45, 12).double()
    with torch.no_grad():
        y, lengths = network(x, LENGTHS)
    assert lengths.tolist() == network.frame_lengths(torch.tensor(LENGTHS)).tolist()
    for row, n in enumerate(LENGTHS):
        expected = DEFINITIONS[name](network, x[row, :n].T).T
        found = y[row, : lengths[row]]
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert not y[row, lengths[row] :].any()


@each_network
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(name, training):
    """Neither frames nor gradients nor running statistics, whatever and how long it is."""
    x, found = noise(3, 45, 12), []
    for fill, more in ((0.0, 0), (1e6, 0), (float("nan"), 13)):
        network = made(name).train(training)
        seen = functional.pad(x, (0, 0, 0, more))
        for row, n in zip(seen, LENGTHS, strict=True):
            row[n:] = fill
        seen.requires_grad_()
        y, lengths = network(seen, LENGTHS)
        kept = y[:, : int(lengths.max())]
        assert not y[:, kept.shape[1] :].any()
        weights = noise(*kept.shape, seed=9)
        leaves = [seen, *network.parameters()]
        grad, *gradients = torch.autograd.grad((kept * weights).sum(), leaves)
        assert not any(row[n:].any() for row, n in zip(grad, LENGTHS, strict=True))
        found.append([kept.detach(), grad[:, :45], *gradients, *network.buffers()])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            # Gradients sum over all frames, in an order that padding may change.
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()) + 1e-6)


@each_network
def test_in_training_all_frames_of_the_batch_count_once(name):
    """Two utterances of one length, batched with padding or without."""
    x, n = noise(2, 40, 12), 40
    plain, padded = made(name).train(), made(name).train()
    y, lengths = plain(x)
    assert lengths is None
    z, _ = padded(functional.pad(x, (0, 0, 0, 9), value=3.0), [n, n])
    torch.testing.assert_close(z[:, : y.shape[1]], y, rtol=1e-3, atol=1e-4)
    full, _ = made(name).train()(x, [n, n])
    torch.testing.assert_close(full, y, rtol=1e-3, atol=1e-4)
    for a, b in zip(plain.buffers(), padded.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 9), (3, 5, 9, 4)])
def test_masked_batch_norm_is_torch_s_of_the_valid_frames(shape):
    x, n = noise(*shape).requires_grad_(), torch.tensor([9, 4, 1])
    padding = (torch.arange(9) >= n[:, None])[:, None]
    padding = padding if x.dim() == 3 else padding[..., None]
    ours, theirs = MaskedBatchNorm(5), nn.BatchNorm1d(5)
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(norm.bias, generator=torch.Generator().manual_seed(2))
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        y = ours(x, padding)
        rows = x.movedim(1, -1)[~padding.movedim(1, -1)[..., 0].expand(x[:, 0].shape)]
        expected = theirs(rows)
        found = y.movedim(1, -1)[~padding.movedim(1, -1)[..., 0].expand(x[:, 0].shape)]
        torch.testing.assert_close(found, expected)
        assert not y[padding.expand_as(y)].any()
        weights = noise(*expected.shape, seed=3)
        a = torch.autograd.grad((found * weights).sum(), [x, *ours.parameters()])
        b = torch.autograd.grad((expected * weights).sum(), [x, *theirs.parameters()])
        for one, two in zip(a, b, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.parametrize(
    "network",
    [XVector(3, 4, 5), ECAPA(3, 4, 5, scale=2, bottleneck=3), ResNet34(3, 2)],
    ids=["xvector", "ecapa", "resnet"],
)
def test_gradients_in_training(network):
    network = network.double().train()
    x = noise(2, 19, 3).double().requires_grad_()
    weights = noise(1, 19, 1, seed=4).double()

    def output(x: Tensor) -> Tensor:
        y = network(x, [19, 16])[0]
        return torch.tanh(y) * weights[:, : y.shape[1]]

    assert torch.autograd.gradcheck(output, (x,), fast_mode=True, eps=1e-7, atol=1e-4)


# Counts of parameters: (weights and bias of a layer) + (weight and bias of its norm).


def layer(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel + outputs + 2 * outputs


def test_size_of_the_x_vector():
    """Snyder et al. 2018: 4.2 million without the softmax and the last hidden layer.

    Its inputs are 24 filter banks, and the count is of the sizes in its table 1.
    """
    network = XVector(24)
    published = 120 * 512 + 2 * 1536 * 512 + 512 * 512 + 512 * 1500 + 3000 * 512
    assert round(published / 1e6, 1) == 4.2
    with_pooling = StatisticsPooling().output_size(network.output_size)
    first_affine = nn.Linear(with_pooling, 512)
    sizes = [(24, 512, 5), (512, 512, 3), (512, 512, 3), (512, 512, 1), (512, 1500, 1)]
    count = parameters(network, first_affine)
    assert count == sum(layer(*size) for size in sizes) + 3000 * 512 + 512
    assert round(count / 1e6, 1) == 4.2


@pytest.mark.parametrize(("channels", "millions"), [(512, 6.2), (1024, 14.7)])
def test_size_of_ecapa(channels, millions):
    """Desplanques et al. 2020, table 1: 6.2 and 14.7 million, with the embedding of 192."""
    network = ECAPA(80, channels)
    pooling = AttentiveStatisticsPooling(network.output_size, 128)
    rest = nn.BatchNorm1d(3072), nn.Linear(3072, 192)
    C, width = channels, channels // 8
    block = 2 * layer(C, C, 1) + 7 * layer(width, width, 3) + (C * 128 + 128) + (128 * C + C)
    frames = layer(80, C, 5) + 3 * block + 3 * C * 1536 + 1536
    attention = 3 * 1536 * 128 + 128 + 128 * 1536 + 1536
    count = parameters(network, pooling, *rest)
    assert parameters(network) == frames
    assert count == frames + attention + 2 * 3072 + 3072 * 192 + 192
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(("channels", "millions"), [(32, 6.63), (16, None)])
def test_size_of_the_resnet(channels, millions):
    """Wespeaker's ResNet34-TSTP-emb256, of 32 channels, has 6.63 million (its VoxCeleb results)."""
    network = ResNet34(80, channels)
    c, norm = channels, 2
    count = 9 * c + norm * c + 3 * 2 * (9 * c * c + norm * c)
    for blocks in (4, 6, 3):
        half, c = c, 2 * c
        count += 9 * half * c + norm * c + 9 * c * c + norm * c + half * c + norm * c
        count += (blocks - 1) * 2 * (9 * c * c + norm * c)
    assert parameters(network) == count
    assert network.output_size == 8 * channels * 10
    embedding = nn.Linear(StatisticsPooling().output_size(network.output_size), 256)
    total = parameters(network, embedding)
    assert total == count + 2 * 80 * channels * 256 + 256
    if millions is not None:
        assert round(total / 1e6, 2) == millions


@each_network
def test_sizes_and_lengths(name):
    network = made(name).eval()
    least = network.minimum_frames
    assert network.input_size == 12
    assert network.frame_lengths(torch.tensor([least])).tolist() == [1]
    assert network.frame_lengths(torch.tensor([least - 1])).tolist() == [0]
    for T in (least, least + 1, 23, 24, 25):
        y, lengths = network(noise(2, T, 12), [T, least])
        assert y.shape == (2, int(network.frame_lengths(torch.tensor(T))), network.output_size)
        assert lengths.tolist() == [y.shape[1], 1]
        assert lengths.dtype == torch.int64


@each_network
def test_what_cannot_be_used_is_named(name):
    network = made(name)
    with pytest.raises(ArgumentError, match=r"frames: wants shape \(B, T, 12\)"):
        network(noise(2, 30, 11))
    with pytest.raises(ArgumentTypeError, match="frames: wants floating point"):
        network(torch.zeros(2, 30, 12, dtype=torch.int64))
    with pytest.raises(LengthError, match="lengths: wants shape"):
        network(noise(2, 30, 12), [30])
    with pytest.raises(LengthError, match="lengths: sample 0 has length 31"):
        network(noise(2, 30, 12), [31, 30])


def test_too_few_frames_are_named():
    network = made("xvector")
    with pytest.raises(ClipTooShortError, match=r"frames: has 14 frames; .* at least 15"):
        network(noise(2, 14, 12))
    with pytest.raises(ClipTooShortError, match="lengths: sample 1 has 14 frames"):
        network(noise(2, 30, 12), Lengths([30, 14]))
    with pytest.raises(ArgumentError, match=r"channels: wants a multiple of scale \(8"):
        ECAPA(80, 100)
    with pytest.raises(ArgumentError, match="channels: wants 1 or more"):
        XVector(80, 0)
    with pytest.raises(ArgumentError, match="input_size: wants 1 or more"):
        ResNet34(0)


@each_network
def test_under_autocast(name):
    """bfloat16 inside; near float32, and statistics that are float32."""
    network, x = made(name).train(), noise(3, 45, 12)
    exact, _ = made(name).train()(x, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = network(x, LENGTHS)
        plain, _ = made(name).train()(x)
    y.float().square().sum().backward()
    assert plain.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(buffer.dtype != torch.bfloat16 for buffer in network.buffers())
    assert ((y.float() - exact).norm() / exact.norm()).detach() < 0.1


@each_network
def test_the_same_twice(name):
    x = noise(3, 45, 12)
    for training in (True, False):
        one, two = made(name).train(training), made(name).train(training)
        assert torch.equal(one(x, LENGTHS)[0], two(x, LENGTHS)[0])
        assert all(map(torch.equal, one.buffers(), two.buffers()))
