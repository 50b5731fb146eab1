"""Attentive statistics pooling with channel-dependent weights and global context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from speechft.errors import ArgumentError
from speechft.functional.attentive_statistics_pooling import attentive_statistics_pooling
from speechft.functional.statistics_pooling import statistics_pooling
from speechft.lengths import LengthsLike, check_lengths
from speechft.pooling._batch_norm import FrameBatchNorm
from speechft.reference.statistics_pooling import EPSILON

if TYPE_CHECKING:
    from typing_extensions import Self

# Names of weights in wespeaker's ASTP and in SpeechBrain's AttentiveStatisticsPooling -> ours.
_WESPEAKER = {"linear1": "project", "linear2": "score"}
_SPEECHBRAIN = {"tdnn.conv.conv": "project", "tdnn.norm.norm": "norm", "conv.conv": "score"}


class AttentiveStatisticsPooling(nn.Module):
    r"""Mean and deviation over time, of each channel with weights of its own.

    .. math::

        h_t = f(W x_t + U [\mu; \sigma] + b), \qquad
        \alpha = \mathrm{softmax}_t(V h_t + k), \qquad
        y = \mathrm{stats}_\alpha(x),

    where :math:`\mu, \sigma` are the plain mean and deviation of the utterance (its global
    context), and :math:`f` is tanh, after ReLU and batch norm with ``batch_norm``. What others
    compute as one convolution of the frame next to a copy of the context, 3 C channels, is here a
    product of the frame and one bias an utterance: the same weights, a third of the work.

    Args:
        channels: C.
        bottleneck: size of h.
        global_context: with the term U.
        batch_norm: ReLU and batch norm before the tanh, as in SpeechBrain's ECAPA-TDNN.
        correction: 1 takes the context's deviation by n - 1 frames, as wespeaker does.
        epsilon: the least variance.

    Shape:
        x (B, T, C), lengths (B,); (B, 2 C), means then deviations, float32.

    Weights of wespeaker's ``ASTP`` and SpeechBrain's ``AttentiveStatisticsPooling`` load by
    ``load_state_dict``; :meth:`from_state_dict` makes a module that fits them.

    Raises:
        LengthError: a length of 0 or beyond T, or of 1 with ``correction=1``.

    Source: Okabe et al., Interspeech 2018; Desplanques et al., "ECAPA-TDNN", Interspeech 2020.

    >>> import torch
    >>> AttentiveStatisticsPooling(16, bottleneck=4)(torch.randn(2, 9, 16), [9, 5]).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        channels: int,
        bottleneck: int = 128,
        *,
        global_context: bool = True,
        batch_norm: bool = False,
        correction: int = 0,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(channels, bottleneck)
        self.context = nn.Linear(2 * channels, bottleneck, bias=False) if global_context else None
        self.norm = FrameBatchNorm(bottleneck) if batch_norm else None
        self.score = nn.Linear(bottleneck, channels)
        self.correction = correction
        self.epsilon = epsilon

    def forward(self, x: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """Means and deviations of the valid frames."""
        if x.dim() == 3 and x.shape[2] != self.project.in_features:
            raise ArgumentError(
                "x", f"wants {self.project.in_features} channels, got {tuple(x.shape)}"
            )
        found = check_lengths(
            lengths, batch=x.shape[0], steps=x.shape[1], device=x.device, argument="lengths"
        )
        hidden = self.project(x)
        if self.context is not None:
            of_utterance = statistics_pooling(
                x, found, correction=self.correction, epsilon=self.epsilon
            )
            hidden = hidden + self.context(of_utterance.to(hidden.dtype))[:, None]
        if self.norm is not None:
            hidden = self.norm(torch.relu(hidden), found)
        scores = self.score(torch.tanh(hidden))
        return attentive_statistics_pooling(x, scores.to(x.dtype), found, epsilon=self.epsilon)

    def output_size(self, channels: int) -> int:
        """Of the vector that frames of so many channels become."""
        return 2 * channels

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], *, epsilon: float = EPSILON) -> Self:
        """A module that fits weights of wespeaker, SpeechBrain or its own, with them loaded.

        Raises:
            ArgumentError: the weights are of something else.
        """
        found = {name: tensor for name, tensor in _renamed(state)}
        if "project.weight" not in found or "score.weight" not in found:
            raise ArgumentError(
                "state",
                "is of no attentive statistics pooling that is known: it wants linear1 and linear2 "
                "(wespeaker), tdnn and conv (SpeechBrain) or project and score; got "
                f"{', '.join(sorted(state)) or 'nothing'}",
            )
        bottleneck, channels = found["project.weight"].shape[0], found["score.weight"].shape[0]
        context = "context.weight" in found or found["project.weight"].shape[1] == 3 * channels
        made = cls(
            channels,
            bottleneck,
            global_context=context,
            batch_norm="norm.weight" in found,
            correction=int(any(name.startswith("linear1") for name in state)),
            epsilon=epsilon,
        )
        made.load_state_dict(state)
        return made

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        mine = {k[len(prefix) :]: k for k in list(state_dict) if k.startswith(prefix)}
        taken = {name: state_dict.pop(key) for name, key in mine.items()}
        channels = self.project.in_features
        for name, tensor in _renamed(taken):
            if name in ("project.weight", "score.weight") and tensor.dim() == 3:
                tensor = tensor[..., 0]  # a convolution of one frame
            if name == "project.weight" and tensor.shape[1] == 3 * channels and self.context:
                state_dict[f"{prefix}context.weight"] = tensor[:, channels:]
                tensor = tensor[:, :channels]
            state_dict[prefix + name] = tensor
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _renamed(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    found = []
    for name, tensor in state.items():
        for theirs, ours in (_WESPEAKER | _SPEECHBRAIN).items():
            if name.startswith(theirs + "."):
                name = ours + name[len(theirs) :]
                break
        found.append((name, tensor))
    return found
