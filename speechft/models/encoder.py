"""The encoder: waveforms and their lengths in, hidden states and frame lengths out.

It holds a plain transformers model and computes what that model computes, calling its submodules
in order. Five things differ from calling the model itself:

* the first group norm of the "base" models counts valid frames only (transformers counts the
  padding: relative error 0.25 and more for a second of padding on a second of speech);
* the frame mask comes from exact arithmetic, and a clip too short for one frame is an error
  (transformers marks *all* frames of it valid);
* a WavLM's attention calls its projection modules (:mod:`speechft.models.wavlm`);
* LayerDrop and, unless asked for, SpecAugment masking are off;
* nothing makes the host wait for the GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechft.backends import values_are_checked
from speechft.errors import ArgumentError, ArgumentTypeError, ClipTooShortError
from speechft.lengths import LengthsLike, check_lengths
from speechft.models.masked import masked_group_norm, valid_mask, zero_mean_unit_variance
from speechft.models.saving import save_encoder
from speechft.models.structure import check_structure

SUPPORTED = ("hubert", "wav2vec2", "wavlm")


class EncoderOutput(NamedTuple):
    """What an :class:`Encoder` returns. Padded frames hold zeros.

    Attributes:
        hidden_states: ``num_layers + 1`` tensors (B, T', C). The first is the input of the first
            transformer layer, the i-th the output of the i-th layer, before the final layer norm
            that pre-norm models have.
        last_hidden_state: (B, T', C), the features: the last of these, after that layer norm.
        lengths: (B,) int64, the valid frames of each sample.
    """

    hidden_states: tuple[Tensor, ...]
    last_hidden_state: Tensor
    lengths: Tensor


class Encoder(nn.Module):
    """A wav2vec 2.0, HuBERT or WavLM model whose features do not depend on padding.

    Made by :func:`speechft.models.load`, or by :func:`speechft.models.wrap` from a model in memory.
    The model is used as it is, not copied: its parameters keep their names, adapters injected into
    it (peft) take effect here, and ``hf_model.state_dict()`` is that of the plain model. Its
    config has ``layerdrop`` and ``apply_spec_augment`` switched off, for whoever calls it
    directly; :meth:`save_pretrained` writes them as they were.

    The batch norm in front of the positional convolution, which a few HuBERT models have, always
    uses its running statistics, as in ``eval()``: its batch statistics would count padding and
    make each utterance depend on the others.

    Args:
        hf_model: a ``Wav2Vec2Model``, ``HubertModel`` or ``WavLMModel``, or a model with a head on
            one of them, whose head is left aside.
        do_normalize: bring each waveform to zero mean and unit variance over its valid samples.
            It belongs to the checkpoint: ``preprocessor_config.json`` says it.
        sample_rate: of the waveforms the model was trained on, Hz.
        spec_augment: keep the model's own SpecAugment masking in training mode, as transformers
            does it (drawn from numpy's global generator, and the host waits for the GPU).
        preprocessor: the content of ``preprocessor_config.json``, which :meth:`save_pretrained`
            hands on.

    Raises:
        ArgumentTypeError: not one of these models, or built otherwise than expected.
        ArgumentError: a setting of the model that is not supported.
    """

    hf_model: Any  # a PreTrainedModel, which must not be imported here

    def __init__(
        self,
        hf_model: nn.Module,
        *,
        do_normalize: bool = False,
        sample_rate: int = 16_000,
        spec_augment: bool = False,
        preprocessor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        model = _bare(hf_model)
        check_structure(model)
        self.hf_model = model
        self.do_normalize = do_normalize
        self.sample_rate = sample_rate
        self.spec_augment = spec_augment
        self.preprocessor = preprocessor
        self._convolutions = tuple(
            (layer.conv.kernel_size[0], layer.conv.stride[0])
            for layer in model.feature_extractor.conv_layers
        )
        self._group_norm = self.config.feat_extract_norm == "group"
        self._pre_norm = bool(self.config.do_stable_layer_norm)
        self._wavlm = self.config.model_type == "wavlm"
        self._config_as_loaded: dict[str, Any] = {}
        self._switch_off("layerdrop", 0.0)
        if not spec_augment:
            self._switch_off("apply_spec_augment", False)
            if getattr(model, "masked_spec_embed", None) is not None:
                # Nothing else reads it, and a tensor that is trained in vain stops
                # DistributedDataParallel.
                model.masked_spec_embed.requires_grad_(False)
        if self._wavlm:
            from speechft.models.wavlm import adopt

            for layer in self.hf_model.encoder.layers:
                adopt(layer.attention)
        self.train(model.training)

    @property
    def config(self) -> Any:
        """The transformers config of the model."""
        return self.hf_model.config

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, first to last."""
        layers = self.hf_model.encoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Size C of a frame."""
        return int(self.config.hidden_size)

    @property
    def minimum_samples(self) -> int:
        """The shortest waveform that makes one frame: the receptive field of the convolutions."""
        samples = 1
        for kernel, stride in reversed(self._convolutions):
            samples = (samples - 1) * stride + kernel
        return samples

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """How many frames the convolutions make of so many samples.

            n ← ⌊(n − kernel) / stride⌋ + 1        for each convolution

        Args:
            sample_lengths: integers of any shape.

        Returns:
            int64 of the same shape and device; 0 where there are fewer samples than
            :attr:`minimum_samples`.
        """
        lengths = sample_lengths.to(torch.int64)
        for kernel, stride in self._convolutions:
            lengths = _conv_length(lengths, kernel, stride)
        return lengths

    def forward(
        self,
        waveforms: Tensor,
        lengths: LengthsLike | None = None,
        *,
        up_to_layer: int | None = None,
    ) -> EncoderOutput:
        """Encode a batch of waveforms.

        Args:
            waveforms: (B, T), floating point, at :attr:`sample_rate`, on the model's device.
                What lies beyond each length is ignored, even NaN.
            lengths: (B,) valid samples: a :class:`speechft.Lengths`, a tensor of integers or a
                list. None: all samples are valid.
            up_to_layer: stop after this many transformer layers; ``last_hidden_state`` is then the
                last of ``hidden_states``, without the final layer norm.

        Raises:
            ClipTooShortError: a waveform shorter than :attr:`minimum_samples` (checked on the CPU,
                and on a GPU inside :func:`speechft.checked`; unchecked, it counts as one frame).
            LengthError: lengths of the wrong shape or out of range (checked likewise).
            ArgumentError: a wrong shape, NaN or infinity in a valid sample (checked likewise), or
                a layer that does not exist.
            ArgumentTypeError: waveforms that are not floating point.
        """
        depth = self._check_depth(up_to_layer)
        waveforms, samples = self._check_waveforms(waveforms, lengths)
        if self.do_normalize:
            waveforms = zero_mean_unit_variance(waveforms, samples)
        features, frames = self._convolve(waveforms.to(self._dtype()), samples)
        return self._transform(features, frames, depth)

    def _convolve(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, T) to features (B, T', C). Valid frames only ever see valid samples."""
        hidden = waveforms[:, None]
        conv_layers = self.hf_model.feature_extractor.conv_layers
        for index, (kernel, stride) in enumerate(self._convolutions):
            layer = conv_layers[index]
            if lengths is not None:
                lengths = _conv_length(lengths, kernel, stride).clamp(min=1)
            if index == 0 and self._group_norm:
                # Without lengths too, so that a clip alone gives the bits that it gives in a batch.
                norm = layer.layer_norm
                hidden = layer.conv(hidden)
                valid = lengths
                if valid is None:
                    valid = torch.full(hidden.shape[:1], hidden.shape[2], device=hidden.device)
                hidden = masked_group_norm(hidden, valid, norm.weight, norm.bias, eps=norm.eps)
                hidden = layer.activation(hidden)
            else:
                hidden = layer(hidden)
        return hidden.transpose(1, 2), lengths

    def _transform(self, features: Tensor, lengths: Tensor | None, depth: int) -> EncoderOutput:
        model = self.hf_model
        batch, steps = features.shape[:2]
        valid = None if lengths is None else valid_mask(lengths, steps)
        padding = None if valid is None else ~valid[..., None]

        def zero_padding(hidden: Tensor) -> Tensor:
            return hidden if padding is None else hidden.masked_fill(padding, 0.0)

        projected = model.feature_projection(features)
        hidden = projected[0] if isinstance(projected, tuple) else projected
        if self.spec_augment and self.training:
            hidden = model._mask_hidden_states(hidden, attention_mask=valid)
        # The positional convolution pads with zeros, so padding must be zeros for it.
        hidden = zero_padding(hidden)
        hidden = hidden + self._embed_positions(hidden, padding)
        if not self._pre_norm:
            hidden = model.encoder.layer_norm(hidden)
        hidden = zero_padding(model.encoder.dropout(hidden))

        mask = valid if self._wavlm else self._attention_mask(valid, hidden.dtype)
        hidden_states = [hidden]
        shared: dict[str, Tensor] = {}
        for layer in self.layers[:depth]:
            output = layer(hidden, attention_mask=mask, **shared)
            if self._wavlm:
                # Only the first layer has the table of position biases; it hands it on.
                shared["position_bias"] = output[1]
            hidden = zero_padding(output[0] if isinstance(output, tuple) else output)
            hidden_states.append(hidden)

        if self._pre_norm and depth == self.num_layers:
            hidden = zero_padding(model.encoder.layer_norm(hidden))
        if lengths is None:
            lengths = torch.full((batch,), steps, device=features.device)
        return EncoderOutput(tuple(hidden_states), hidden, lengths)

    def _embed_positions(self, hidden: Tensor, padding: Tensor | None) -> Tensor:
        embedding = self.hf_model.encoder.pos_conv_embed
        batch_norm = getattr(embedding, "batch_norm", None)
        if batch_norm is None or padding is None:
            positions: Tensor = embedding(hidden)
            return positions
        # The batch norm turns the zeros of the padding into something else.
        normed = batch_norm(hidden.transpose(1, 2)).masked_fill(padding.transpose(1, 2), 0.0)
        positions = embedding.activation(embedding.padding(embedding.conv(normed))).transpose(1, 2)
        return positions

    def _attention_mask(self, valid: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if valid is None:
            return None
        mask = valid[:, None, None]
        if self.config._attn_implementation == "sdpa":
            return mask
        additive = torch.zeros_like(mask, dtype=dtype)
        return additive.masked_fill(~mask, torch.finfo(dtype).min)

    def _check_waveforms(
        self, waveforms: Tensor, lengths: LengthsLike | None
    ) -> tuple[Tensor, Tensor | None]:
        if not waveforms.is_floating_point():
            raise ArgumentTypeError(
                "waveforms",
                f"wants floating point in [-1, 1], got {waveforms.dtype}; "
                "divide integers by their full scale (32768 for int16)",
            )
        if waveforms.dim() != 2 or waveforms.shape[0] == 0:
            raise ArgumentError(
                "waveforms",
                f"wants shape (B, T), one channel each, got {tuple(waveforms.shape)}",
            )
        batch, steps = waveforms.shape
        minimum = self.minimum_samples
        if steps < minimum:
            raise ClipTooShortError("waveforms", self._too_short("every sample", steps))
        samples = check_lengths(
            lengths, batch=batch, steps=steps, device=waveforms.device, argument="lengths"
        )
        if samples is not None:
            if values_are_checked(samples) and bool((samples < minimum).any()):
                where = int((samples < minimum).nonzero()[0, 0])
                raise ClipTooShortError(
                    "lengths", self._too_short(f"sample {where}", int(samples[where]))
                )
            waveforms = waveforms.masked_fill(~valid_mask(samples, steps), 0.0)
        if values_are_checked(waveforms):
            finite = waveforms.isfinite().all(dim=1)
            if not bool(finite.all()):
                where = int((~finite).nonzero()[0, 0])
                raise ArgumentError("waveforms", f"sample {where} holds NaN or infinity")
        if waveforms.dtype in (torch.float16, torch.bfloat16):
            waveforms = waveforms.float()
        return waveforms, samples

    def _too_short(self, who: str, samples: int) -> str:
        minimum = self.minimum_samples
        milliseconds = 1000 * minimum / self.sample_rate
        return (
            f"{who} has {samples} samples; the model needs at least {minimum} "
            f"({milliseconds:g} ms at {self.sample_rate} Hz) to make one frame: "
            "drop shorter clips or join them to their neighbours"
        )

    def _check_depth(self, up_to_layer: int | None) -> int:
        if up_to_layer is None:
            return self.num_layers
        if not 0 <= up_to_layer <= self.num_layers:
            raise ArgumentError(
                "up_to_layer", f"wants 0 to {self.num_layers} (the layers), got {up_to_layer}"
            )
        return up_to_layer

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, but for the batch norm before the positional convolution."""
        super().train(mode)
        batch_norm = getattr(self.hf_model.encoder.pos_conv_embed, "batch_norm", None)
        if isinstance(batch_norm, nn.Module):
            batch_norm.eval()
        return self

    def freeze_all_but_top(self, layers: int) -> list[str]:
        """Freeze every parameter except those of the last ``layers`` transformer layers.

        Of a pre-norm model (``do_stable_layer_norm``) the final layer norm, which comes after
        the last layer, is tuned as well; a post-norm model has its ``encoder.layer_norm`` before
        the first layer, and there it is frozen. With ``layers=0`` everything is frozen.

        Returns:
            the names, in the plain transformers model, of the parameters left trainable.

        Raises:
            ArgumentError: fewer than 0 layers or more than there are.
        """
        if not 0 <= layers <= self.num_layers:
            raise ArgumentError("layers", f"wants 0 to {self.num_layers}, got {layers}")
        self.hf_model.requires_grad_(False)
        top: list[nn.Module] = list(self.layers[self.num_layers - layers :])
        if self._pre_norm and layers > 0:
            top.append(self.hf_model.encoder.layer_norm)
        for module in top:
            module.requires_grad_(True)
        return [name for name, p in self.hf_model.named_parameters() if p.requires_grad]

    def checkpoint_activations(self, enabled: bool = True) -> None:
        """Recompute each layer in the backward instead of storing what it needs, or stop that."""
        switch = "enable" if enabled else "disable"
        # The name in transformers 5; 4 has only the older one.
        method = getattr(self.hf_model, f"activation_checkpointing_{switch}", None)
        if method is not None:
            method()
        elif enabled:
            settings = {"use_reentrant": False}
            self.hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        else:
            self.hf_model.gradient_checkpointing_disable()

    def save_pretrained(self, path: str | Path) -> None:
        """Write a plain Hugging Face folder: config, safetensors weights, preprocessor config.

        It loads with :func:`speechft.models.load`, and with ``HubertModel.from_pretrained`` or its
        like, and gives the same features.

        Raises:
            ArgumentError: the model holds adapters that are not merged into its weights.
        """
        save_encoder(self, path)

    def config_as_loaded(self) -> dict[str, Any]:
        """The settings that were switched off, with the values they had."""
        return dict(self._config_as_loaded)

    def _switch_off(self, name: str, value: object) -> None:
        if hasattr(self.config, name):
            self._config_as_loaded[name] = getattr(self.config, name)
            setattr(self.config, name, value)

    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.hf_model.feature_extractor.conv_layers[0].conv.weight.dtype
        return dtype

    def extra_repr(self) -> str:
        """The settings that are not in the model."""
        return f"do_normalize={self.do_normalize}, sample_rate={self.sample_rate}"


def _conv_length(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    frames = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return frames.clamp(min=0)


def _bare(hf_model: nn.Module) -> Any:
    """The encoder inside a model that may have a head."""
    model = hf_model
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in SUPPORTED:
        raise ArgumentTypeError(
            "hf_model",
            f"wants a transformers model of type {', '.join(SUPPORTED)}, got "
            f"{type(hf_model).__name__} of type {model_type!r}",
        )
    prefix = getattr(model, "base_model_prefix", "")
    inner = getattr(model, prefix, None) if prefix else None
    return inner if isinstance(inner, nn.Module) else model
