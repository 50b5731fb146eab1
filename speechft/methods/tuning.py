"""Which part of an embedding model trains: what does not is frozen, and stays in eval mode."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from speechft.errors import ConfigError
from speechft.methods.dino_parts import freeze
from speechft.models import EmbeddingModel
from speechft.models.embedding import PARTS

Trained = Literal["head", "affine", "pooling", "all", "lora"]
_REACH: dict[str, tuple[str, ...]] = {
    "head": (), "affine": PARTS[2:], "pooling": PARTS[1:], "all": PARTS, "lora": PARTS[1:],
}  # fmt: skip


class Tuning:
    """Freezes what of a model does not train.

    Args:
        model: tuned in place.
        train: nothing (``"head"``), the layers from ``"affine"`` or from ``"pooling"`` (with the
            weighting of layers) on, ``"all"``, or adapters of low rank in a speech foundation
            model's attention and what is above it (``"lora"``).
        tuned_layers: of a speech foundation model with ``"all"``, from the top; None: all.
        lora_rank: of the adapters.

    Raises:
        ConfigError: adapters without a speech foundation model, or more layers than are used.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        train: Trained,
        *,
        tuned_layers: int | None = None,
        lora_rank: int = 8,
    ) -> None:
        self._adapted = _choose(model, train, tuned_layers, lora_rank)
        self._still = _still(model, train)

    def settle(self) -> None:
        """Put what is frozen into eval mode."""
        for module in self._still:
            module.eval()

    def finish(self, model: EmbeddingModel, encoder_name: str | None) -> None:
        """Merge adapters, and name the encoder if it is as it was loaded: before saving.

        Args:
            model: the same.
            encoder_name: what the encoder was loaded by; None: it is to be saved along.
        """
        if self._adapted is not None:
            self._adapted.merge_and_unload()
            self._adapted = None
            model.encoder_name = None
        elif any(name.startswith("frames.encoder.") for name in tuned(model)):
            model.encoder_name = None
        elif encoder_name is not None and model.encoder is not None:
            model.encoder_name = encoder_name


def tuned(model: EmbeddingModel) -> list[str]:
    """Names of the tensors that train."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def check_tuning(train: Trained, tuned_layers: int | None, lora_rank: int) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: naming the setting.
    """
    if lora_rank < 1:
        raise ConfigError(f"lora_rank: wants at least 1, got {lora_rank}")
    if tuned_layers is not None and train != "all":
        raise ConfigError(f"tuned_layers: is of train: all, not of {train}")


def _choose(model: EmbeddingModel, train: Trained, tuned_layers: int | None, lora_rank: int) -> Any:
    """Freeze what does not train; with adapters, give what can merge them."""
    model.requires_grad_(False)
    reach = _REACH[train]
    for name in reach:
        model.part(name).requires_grad_(True)
    if train in ("pooling", "lora"):
        for name, parameter in model.frames.named_parameters(recurse=False):
            parameter.requires_grad_(name == "layer_weights")
    if "frames" in reach:
        freeze(model, tuned_layers)
    if train != "lora":
        return None
    encoder = model.encoder
    if encoder is None:
        raise ConfigError(f"train: lora is of a speech foundation model, not {model.spec.backbone}")
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora_rank, lora_alpha=2 * lora_rank, target_modules=["q_proj", "v_proj"]
    )
    used = encoder.num_layers if model.spec.layer is None else model.spec.layer
    settings.layers_to_transform = list(range(used))
    # It changes the encoder's own model in place; not a submodule, or it would be saved twice.
    return get_peft_model(encoder.hf_model, settings)


def _still(model: EmbeddingModel, train: Trained) -> list[nn.Module]:
    """What stays in eval mode: parts that do not train, and what is frozen in those that do."""
    still = [model.part(name) for name in PARTS if name not in _REACH[train]]
    still += _frozen(model)
    encoder = model.encoder
    if encoder is not None and encoder.layers[0] in still:
        still.append(encoder.hf_model.encoder.dropout)  # before the layers, and of none of them
    return still


def _frozen(module: nn.Module) -> list[nn.Module]:
    """The largest modules in it that have parameters of which none trains."""
    trains = [p.requires_grad for p in module.parameters()]
    if trains and not any(trains):
        return [module]
    return [found for child in module.children() for found in _frozen(child)]
