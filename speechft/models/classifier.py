"""An embedding model with what tells the classes of a label from its vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from speechft.errors import ArgumentError
from speechft.lengths import LengthsLike
from speechft.losses import AAMSoftmaxLoss
from speechft.models.adapter import ResidualAdapter
from speechft.models.embedding import EmbeddingModel, load_embedding

HeadKind = Literal["cross_entropy", "aam"]
_HEAD, _ADAPTER, _CLASSES = "head.safetensors", "adapter.safetensors", "classes.json"


class LinearHead(nn.Module):
    """Logits of an affine layer, and cross-entropy; a label of -1 counts nowhere."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, classes)

    def logits(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B, classes), float32."""
        logits: Tensor = self.linear(vectors)
        return logits.float()

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """(B,) losses; 0 where the label is -1."""
        return cross_entropy(self.logits(vectors), labels, ignore_index=-1, reduction="none")


class Classifier(nn.Module):
    """Waveforms to logits over the classes of a label.

    Attributes:
        model: waveforms to vectors.
        adapter: vectors to vectors of the same size, for the head alone; None: they are as they
            are.
        head: vectors to logits, by its ``logits``.
        label: of the manifest.
        classes: its values, in the order of the logits.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        head: nn.Module,
        label: str,
        classes: Sequence[str | int],
        adapter: ResidualAdapter | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.head: Any = head
        self.label = label
        self.classes = tuple(classes)

    def forward(self, waveforms: Tensor, lengths: LengthsLike | None = None) -> Tensor:
        """(B, T) at the model's rate -> (B, classes)."""
        return self.logits(self.model(waveforms, lengths))

    def adapted(self, vectors: Tensor) -> Tensor:
        """What the head sees of vectors of the model: (B, D) -> (B, D)."""
        return vectors if self.adapter is None else self.adapter(vectors)

    def logits(self, vectors: Tensor) -> Tensor:
        """Of vectors of the model: (B, D) -> (B, classes)."""
        logits: Tensor = self.head.logits(self.adapted(vectors))
        return logits

    def save_pretrained(self, path: str | Path) -> None:
        """Write the embedding model and, beside it, the head, its adapter and its classes."""
        folder = Path(path)
        self.model.save_pretrained(folder)
        head = self.head
        _write(head, folder / _HEAD)
        if self.adapter is not None:
            _write(self.adapter, folder / _ADAPTER)
        content: dict[str, Any] = {
            "label": self.label,
            "head": "aam" if isinstance(head, AAMSoftmaxLoss) else "cross_entropy",
            "classes": list(self.classes),
            "adapter_size": 0 if self.adapter is None else self.adapter.hidden,
        }
        if isinstance(head, AAMSoftmaxLoss):
            content.update(sub_centers=head.sub_centers, scale=head.scale)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / _CLASSES).write_text(text, encoding="utf-8")


def is_classifier_folder(path: str | Path) -> bool:
    """Whether there is a classifier in this folder."""
    return Path(path, _CLASSES).is_file() and Path(path, _HEAD).is_file()


def load_classifier(path: str | Path, *, device: torch.device | str | None = None) -> Classifier:
    """Load what :meth:`Classifier.save_pretrained` wrote, in eval mode.

    Raises:
        ArgumentError: no such folder, or none of a classifier.
    """
    folder = Path(path)
    if not is_classifier_folder(folder):
        raise ArgumentError("path", f"{folder} holds no classifier: it has no {_CLASSES}")
    model = load_embedding(folder)
    content = json.loads((folder / _CLASSES).read_text(encoding="utf-8"))
    head: nn.Module
    if content["head"] == "aam":
        head = AAMSoftmaxLoss(
            model.size, len(content["classes"]), sub_centers=content["sub_centers"],
            scale=content["scale"],
        )  # fmt: skip
    else:
        head = LinearHead(model.size, len(content["classes"]))
    load_head(head, folder)
    adapter = None
    hidden = content.get("adapter_size", 0)  # folders written before there were any do not say
    if hidden:
        adapter = ResidualAdapter(model.size, hidden)
        load_adapter(adapter, folder)
    made = Classifier(model, head, content["label"], content["classes"], adapter)
    return made.to(device).eval()


def load_head(head: nn.Module, folder: Path) -> None:
    """The weights of a head from a classifier's folder.

    Raises:
        ArgumentError: they are of another one.
    """
    _read(head, folder / _HEAD, "head")


def load_adapter(adapter: ResidualAdapter, folder: Path) -> None:
    """The weights of an adapter from a classifier's folder.

    Raises:
        ArgumentError: there are none, or of another one.
    """
    _read(adapter, folder / _ADAPTER, "adapter")


def _write(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()},
        path,
        metadata={"format": "pt"},
    )


def _read(module: nn.Module, path: Path, argument: str) -> None:
    from safetensors.torch import load_file

    if not path.is_file():
        raise ArgumentError(argument, f"there is no {path}")
    weights, own = load_file(path), module.state_dict()
    odd = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
    if odd or set(weights) != set(own):
        name = (odd or sorted(set(weights) ^ set(own)))[0]
        raise ArgumentError(argument, f"{path} does not fit at {name}")
    module.load_state_dict(weights)


def classes_of(path: str | Path) -> tuple[str, tuple[str | int, ...]]:
    """The label of a classifier's folder, and its classes."""
    content = json.loads(Path(path, _CLASSES).read_text(encoding="utf-8"))
    return content["label"], tuple(content["classes"])
