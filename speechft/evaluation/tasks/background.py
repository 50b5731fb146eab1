"""Other speech of a speaker task, of which PLDA and the cohort of AS-norm are made."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from speechft.data import Manifest, read_manifest
from speechft.errors import ArgumentError, ManifestError
from speechft.evaluation.plda import PLDA
from speechft.evaluation.scoring import class_means
from speechft.evaluation.tasks.base import Context, labels_of, views, where


def background_speech(context: Context, path: str | None) -> Manifest:
    """The manifest at a path, or the part ``train`` of the data.

    Raises:
        ArgumentError: no path and no such part.
        ManifestError: see :func:`speechft.data.read_manifest`.
    """
    if path is not None:
        return read_manifest(path)
    if "train" not in context.data.parts:
        raise ArgumentError(
            "background",
            f"is missing: PLDA and AS-norm need speech of others, and {context.data.name} has no "
            "part 'train'; give the path of a manifest with speakers",
        )
    return context.data.parts["train"]


class Background:
    """The vectors of a background as each view of the model has them, and whose they are.

    Args:
        context: of the task.
        manifest: its speech.
        name: for the protocol.
        label: of the utterances; that none has it is an error with ``labelled`` only.
        labelled: whether labels are needed.
        condition: what is done to the speech.
        layers: of an encoder.

    Raises:
        ManifestError: some or all labels are missing.
    """

    def __init__(
        self,
        context: Context,
        manifest: Manifest,
        name: str,
        *,
        label: str,
        labelled: bool,
        condition: str,
        layers: Sequence[int],
    ) -> None:
        self.manifest, self.name = manifest, name
        self.speakers: list[str] = []
        if labelled or any(row.label(label) is not None for row in manifest):
            self.speakers = labels_of(manifest, label)
        pooled = context.embeddings.pooled(manifest, condition)
        self._views = views(context, pooled, layers)

    @property
    def cohort_size(self) -> int:
        """Of speakers, or utterances where speakers are not known."""
        return len(set(self.speakers)) if self.speakers else len(self.manifest)

    def cohort(self, place: int) -> Tensor:
        """Vectors (K, C) of the view at this place: the mean of each speaker, or all.

        Raises:
            ManifestError: there is one only.
        """
        if self.cohort_size < 2:
            path, _ = where(self.manifest)
            raise ManifestError(path, None, "is of one speaker; AS-norm needs a cohort of two")
        vectors = self._views[place].vectors
        return class_means(vectors, self.speakers) if self.speakers else vectors

    def plda(self, place: int) -> PLDA:
        """Fitted on the view at this place.

        Raises:
            ManifestError: it cannot be.
        """
        view = self._views[place]
        try:
            return PLDA.fit(view.vectors, self.speakers)
        except ArgumentError as error:
            path, _ = where(self.manifest)
            of = view.of or f"layer {view.layer}"
            raise ManifestError(path, None, f"PLDA of {of} cannot be fitted: {error}") from error

    def shared(self, labels: Sequence[object]) -> list[str]:
        """Speakers of the background that are among these."""
        return sorted(set(self.speakers) & {str(label) for label in labels})
