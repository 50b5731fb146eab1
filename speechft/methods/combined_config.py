"""The settings of combined losses; see :mod:`speechft.methods.combined`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from speechft.errors import ConfigError
from speechft.methods.base import check_numbers
from speechft.methods.crop_augmentation import check_augmentation, check_chunk_seconds
from speechft.methods.selection import SelectionConfig
from speechft.methods.tuning import Trained, check_tuning
from speechft.methods.weights import parse_weights
from speechft.models.embedding import Affine, Pooling

LOSSES = ("triplet", "barlow_twins", "vicreg", "info_nce", "nt_xent", "sup_con")
"""What may be summed."""
_Pairs = Literal["labels", "views"]
_Mining = Literal["random", "hard"]
_Figure = Literal["shots", "pairs"]


@dataclass(frozen=True)
class CombinedConfig(SelectionConfig):
    """Settings of combined losses; the defaults are the paper's where it has them.

    Args:
        losses: ``NAME:WEIGHT`` of each that is summed: ``triplet``, ``barlow_twins``, ``vicreg``,
            ``info_nce``, ``nt_xent``, ``sup_con``. A name alone weighs 1.
        pairs: what makes two vectors a pair: the same class of ``"labels"``, or being two
            perturbed ``"views"`` of one utterance, which wants no label.
        label: of the manifest.
        each: utterances of a class in a batch; the batch has as many classes as fit into it.
        mining: of triplets, ``"random"``: a positive and a negative are drawn for each anchor; or
            ``"hard"``: the farthest positive and the nearest negative of the batch, by cosine.
        margin: of triplets, on distances from 0 to 2.
        barlow_lambda: of Barlow Twins, the weight of the redundancy.
        temperature: of InfoNCE, NT-Xent and SupCon.
        train, tuned_layers, lora_rank: see :class:`speechft.methods.ClassificationConfig`; here
            something below the head trains, so ``"head"`` is none of them.
        dropout: of what is pooled, before the projector.
        size, pooling, layer, affine: of a model that is made anew; see
            :class:`speechft.models.EmbeddingSpec`.
        keep_projector: whether the embedding is what the projector makes (the affine part of the
            model), as published; or what is pooled, and the projector is for the losses alone.
        chunk_seconds: cut from each utterance or view, or from and to; None: whole.
        augmentation: ``"none"``, ``"student"``, ``"teacher"`` or a YAML chain; see
            :class:`~speechft.methods.DinoConfig`. None: none with labels, ``"student"`` for views.
        noise, rooms: folders of recordings for it; None: synthesized.
        selection: the figure on what is held out by which the best state is chosen.
            ``"shots"``: every utterance is given to the class whose mean of ``shots`` training
            vectors is nearest by cosine, and the share that is right is averaged over classes.
            ``"pairs"``: the paper's. With the mean and the deviation of the distances of positive
            pairs, the share of these below mean + 3 deviations, and the share of negative pairs
            that are not below it, are averaged. None: the first with labels, the second for views.
        shots: of the first; they are drawn once, by the seed.
        validation, groups, part, validate_every: what is held out, and when the figure is taken;
            see :class:`~speechft.methods.selection.SelectionConfig`.

    Raises:
        ConfigError: a value out of range, a loss that is none, settings that contradict each other.
    """

    losses: tuple[str, ...] = ("triplet:1.0", "barlow_twins:0.05")
    pairs: _Pairs = "labels"
    label: str = "speaker"
    each: int = 4
    mining: _Mining = "random"
    margin: float = 1.0
    barlow_lambda: float = 5.1e-4
    temperature: float = 0.1
    train: Trained = "all"
    tuned_layers: int | None = None
    lora_rank: int = 8
    dropout: float = 0.5
    size: int = 64
    pooling: Pooling = "mean"
    layer: int | None = None
    affine: Affine = "projector"
    keep_projector: bool = True
    chunk_seconds: float | tuple[float, float] | None = None
    augmentation: str | None = None
    noise: str | None = None
    rooms: str | None = None
    selection: _Figure | None = None
    shots: int = 5
    validation: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_weights(self.losses, LOSSES)
        for name, known in (("pairs", _Pairs), ("mining", _Mining), ("train", Trained)):
            value = getattr(self, name)
            if value not in get_args(known):
                raise ConfigError(
                    f"{name}: wants one of {', '.join(get_args(known))}; got {value!r}"
                )
        if self.selection not in (None, *get_args(_Figure)):
            raise ConfigError(f"selection: wants shots or pairs, got {self.selection!r}")
        if self.train == "head":
            raise ConfigError("train: with head nothing would train; use affine for the projector")
        if not self.keep_projector and self.affine == "none":
            raise ConfigError("keep_projector: with affine none there is no projector to leave out")
        check_tuning(self.train, self.tuned_layers, self.lora_rank)
        check_numbers(
            self, at_least={"each": 2, "margin": 0, "barlow_lambda": 0, "size": 1, "shots": 1},
            above_0=("temperature",),
        )  # fmt: skip
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: wants 0 to below 1, got {self.dropout}")
        if self.pairs == "views" and self.selection == "shots":
            raise ConfigError("selection: shots are of labels; for views it is pairs")
        check_chunk_seconds(self.chunk_seconds)
        check_augmentation("augmentation", self.perturbation)
        if self.pairs == "views" and self.perturbation == "none" and self.chunk_seconds is None:
            raise ConfigError(
                "augmentation: two views that are not perturbed are the same; choose one, or "
                "chunk_seconds"
            )

    @property
    def weights(self) -> dict[str, float]:
        """Of the losses, by name."""
        return parse_weights(self.losses, LOSSES)

    @property
    def perturbation(self) -> str:
        """What ``augmentation`` means here."""
        if self.augmentation is None:
            return "student" if self.pairs == "views" else "none"
        return self.augmentation

    @property
    def figure(self) -> str:
        """What ``selection`` means here."""
        return self.selection or ("pairs" if self.pairs == "views" else "shots")
