"""Two-step tuning beside end-to-end tuning: what ``speechft two-step`` runs.

Step one improves the embedding space with :class:`speechft.methods.Combined` losses; step two
freezes it and trains an adapter and a classifier on it. Beside them stand what the model gives
untuned, as a linear probe on its pooled features, and the same model tuned end to end: the same
layers, the same pooling, a linear head, cross-entropy, as many updates as both steps together.

All are trained and tested on the same utterances. Or step one has others, and more of them: of
other classes of the same label (the paper's way for speakers, of whom those to be told apart are
not those of step one), of another label, or, in pairs of views, of none. As end-to-end tuning knows
nothing of these, with labelled ones there are two ways more, which begin with a classifier of them.

The state that is kept, the learning rate (of the same few on both sides) and the penalty of the
probe are chosen on the same validation utterances; the test part is judged once, at the end.

Source: Lux, Chen & Vu, "Combining contrastive and non-contrastive losses for fine-tuning
pretrained models in speech analysis", SLT 2022.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from speechft.data import Manifest, Utterance
from speechft.errors import ConfigError
from speechft.evaluation.layouts import EvaluationData
from speechft.evaluation.metrics import accuracy, uar
from speechft.methods.combined import check_classes
from speechft.methods.held_out import hold_out
from speechft.methods.transfer import read_named, rows_of
from speechft.methods.two_step_config import PART, TwoStepConfig
from speechft.methods.two_step_report import TwoStepReport
from speechft.methods.two_step_ways import Found, Judge, Parts, ways
from speechft.models.embedding_saving import is_embedding_folder


def two_step(
    *,
    model: str | Path,
    data: str | Path | Manifest | EvaluationData,
    output: str | Path,
    config: TwoStepConfig | None = None,
    space_data: str | Path | Manifest | EvaluationData | None = None,
    layout: str = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> TwoStepReport:
    """Tune in two steps and end to end, and judge both on utterances that neither saw.

    A run that was stopped goes on where it was. Writes ``two_step.json`` into ``output``, and all
    models.

    Args:
        model: a speech foundation model, as :func:`speechft.models.load` takes it, or the name of
            a backbone from scratch.
        data: a manifest, a folder in an official layout, ``"embedded"``, or such data. Parts
            train, validation and test are used as they are; without them the seed divides.
        output: a folder.
        config: how.
        space_data: what step one improves the space on, all parts of it: a manifest, a folder in an
            official layout, or such data. None: the utterances that the classifier is trained on.
        layout: of the data.
        device: to train on.

    Raises:
        ConfigError: a class of too few utterances, a model that has its vectors already, an
            utterance of step one that is in the test part, a folder of a run with other settings.
        ManifestError, AudioError: the data.
        TrainingError: the training.
    """
    from speechft.evaluation.tasks.base import whole
    from speechft.evaluation.tasks.label import label_splits

    if is_embedding_folder(model):
        raise ConfigError(f"model: {model} is an embedding model; begin with what it was made of")
    read = data if isinstance(data, EvaluationData) else read_named(data, layout)
    config = config or TwoStepConfig()
    label = config.label or read.label or "speaker"
    config = replace(config, label=label)
    manifest, folder = whole(read), Path(output)
    space = _space(space_data, config)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    report = TwoStepReport(str(model), read.name, config, folder)
    report.space_utterances = None if space is None else len(space)
    divided: list[list[Parts]] = []
    for seed in range(config.seeds):  # all of them before any is trained: what is wrong is said now
        splits = label_splits(read, label, config.groups or read.groups, seed, folds=config.folds)
        divided.append([])
        for split in splits:
            if config.labelled is not None:
                split = split._replace(fit=_few(manifest, split.fit, config, seed))
            parts = Parts(*(rows_of(manifest, rows) for rows in split))
            hold_out(parts.training(), label, share=0.0, part=PART, least=2)  # raises
            if space is not None:
                _check_apart(space, parts.test)
            divided[-1].append(parts)
    for seed, folds in enumerate(divided):
        found: dict[str, list[Found]] = {}
        for fold, parts in enumerate(folds):
            place = folder / f"seed-{seed}" / f"fold-{fold}"
            for way, run in ways(config, own=space is not None).items():
                judge = Judge(str(model), config, parts, place / way, seed, device, space)
                found.setdefault(way, []).append(judge.kept(run))
        for way, each in found.items():
            report.add(way, _joined(each), [one.chosen for one in each])
        report.seconds = time.perf_counter() - start
        report.write()
    return report


def _space(data: Any, config: TwoStepConfig) -> Manifest | None:
    """Step one's own utterances, if it has any: such that it can be trained on them."""
    from speechft.evaluation.tasks.base import whole

    if data is None:
        if config.space_label is not None:
            raise ConfigError("space_label: is of space_data, and there is none")
        return None
    space = whole(data if isinstance(data, EvaluationData) else read_named(data, "auto"))
    if config.pairs == "labels":
        label = config.label_of(True)
        check_classes(space, label)
        hold_out(space, label, share=config.space_validation, least=2)
    return space


def _check_apart(space: Manifest, test: Manifest) -> None:
    """Nobody learns from what is judged on, not even without its label."""
    judged: dict[Any, list[Utterance]] = {}
    for row in test:
        judged.setdefault(row.audio, []).append(row)
    for row in space:
        for other in judged.get(row.audio, []):
            ends = [math.inf if one.end is None else one.end for one in (row, other)]
            if max(row.start, other.start) < min(ends):
                raise ConfigError(
                    f"space_data: {row.id!r} has samples of {other.id!r} of the test part; leave "
                    "it out of step one"
                )


def _few(manifest: Manifest, rows: list[int], config: TwoStepConfig, seed: int) -> list[int]:
    """Some rows of each class; one with fewer has them all."""
    rng = np.random.default_rng(seed)
    of: dict[str, list[int]] = {}
    for row in rows:
        of.setdefault(str(manifest[row].label(str(config.label))), []).append(row)
    chosen = [rng.permutation(of[name])[: config.labelled].tolist() for name in sorted(of)]
    return sorted(row for some in chosen for row in some)


def _joined(folds: list[Found]) -> dict[str, float]:
    """Figures of a seed: predictions of all folds together, geometry averaged over them."""
    truth = [value for fold in folds for value in fold.truth]
    guesses = [value for fold in folds for value in fold.guesses]
    order = {name: number for number, name in enumerate(sorted({*truth, *guesses}))}
    true, guessed = ([order[name] for name in names] for names in (truth, guesses))
    figures = {"accuracy": accuracy(true, guessed), "UAR": uar(true, guessed)}
    for name in folds[0].figures:
        figures[name] = sum(fold.figures[name] for fold in folds) / len(folds)
    return figures
