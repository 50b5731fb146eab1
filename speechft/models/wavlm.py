"""WavLM's self-attention, through its projection modules and torch's fused attention.

WavLM (Chen et al. 2022, arXiv 2110.13900, §III-B) adds a gated relative position bias to the
attention logits. With u_i the part of frame i's input that belongs to a head, d_{j−i} the learnt
bias of the bucket of distance j − i (shared by all layers), and σ the sigmoid,

    a_i, b_i = σ(Σ_4 W u_i)                       (a linear map to 2 × 4 values, summed by fours)
    g_i      = a_i (b_i c − 1) + 2                (c: one learnt number a head)
    A_ij     = softmax_j( q_i·k_j / √d + g_i d_{j−i} )

transformers computes this with ``torch.nn.functional.multi_head_attention_forward`` on the raw
weights of ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``. Whatever wraps these modules, a
LoRA adapter above all, is then never called: it changes nothing and receives no gradient. Here the
modules are called. The parameters, their names and the values computed stay the same.

This module imports transformers; import it only for a WavLM at hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class ModularWavLMAttention(WavLMAttention):  # type: ignore[misc]
    """``WavLMAttention`` that calls its submodules; an instance is made by :func:`adopt`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        *_: object,
        **__: object,
    ) -> tuple[Tensor, None, Tensor]:
        """Attend.

        Args:
            hidden_states: (B, T, C).
            attention_mask: (B, T), 1 or True = valid; every sample needs one valid frame.
            position_bias: (1, H, T, T) as an earlier layer returned it; the first layer makes it.

        The arguments after these are those of transformers that change nothing here (a layer
        index, and whether attention weights are wanted, which fused attention never has).

        Returns:
            the output (B, T, C), None for the attention weights, and the position bias.
        """
        batch, frames, _channels = hidden_states.shape
        heads = (batch, frames, self.num_heads, self.head_dim)
        if position_bias is None:
            position_bias = relative_position_bias(
                self.rel_attn_embed, frames, max_distance=self.max_distance
            )

        gate_logits = self.gru_rel_pos_linear(hidden_states.view(heads).transpose(1, 2))
        gates = gate_logits.unflatten(-1, (2, 4)).sum(-1).sigmoid()
        a, b = gates[..., :1], gates[..., 1:]
        gate = (a * (b * self.gru_rel_pos_const - 1.0) + 2.0).to(position_bias.dtype)
        if attention_mask is None:
            bias = gate * position_bias
        else:
            keys = torch.zeros_like(attention_mask, dtype=position_bias.dtype)
            keys = keys.masked_fill(attention_mask.ne(1), -math.inf)
            bias = torch.addcmul(keys[:, None, None], gate, position_bias)

        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(context.transpose(1, 2).flatten(2)), None, position_bias


def adopt(attention: nn.Module) -> None:
    """Make a ``WavLMAttention`` a :class:`ModularWavLMAttention`, in place and keeping its names.

    The class is changed rather than the module replaced, so that parameters, hooks and optimisers
    that hold them stay as they are.
    """
    attention.__class__ = ModularWavLMAttention


def relative_position_bias(embedding: nn.Embedding, frames: int, *, max_distance: int) -> Tensor:
    """The bias of every pair of frames, (1, H, T, T), before the gate.

    There are only 2T − 1 distances: they are looked up once each, and the table of pairs is a
    window sliding over them.
    """
    distances = torch.arange(1 - frames, frames, device=embedding.weight.device)
    buckets = relative_position_buckets(
        distances, buckets=embedding.num_embeddings, max_distance=max_distance
    )
    by_distance: Tensor = embedding(buckets).T
    # Window k starts at distance k - (T - 1), which is row i = T - 1 - k of the table.
    return by_distance.unfold(1, frames, 1).flip(1)[None]


def relative_position_buckets(distances: Tensor, *, buckets: int, max_distance: int) -> Tensor:
    """The bucket of each signed distance, as in T5 (arXiv 1910.10683, §2.1), both directions.

    Half the buckets serve positive distances. Of each half, the first half holds one distance a
    bucket and the rest grows logarithmically up to ``max_distance``, beyond which all share one.
    """
    per_direction = buckets // 2
    exact = per_direction // 2
    size = distances.abs()
    # Float32 and this order of operations: the edges of the buckets depend on the rounding.
    growth = torch.log(size.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    logarithmic = (exact + growth * (per_direction - exact)).long().clamp(max=per_direction - 1)
    return torch.where(size < exact, size, logarithmic) + (distances > 0) * per_direction
