"""One call from a model and speech to a refined model: what ``speechft refine`` runs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from speechft.data import Manifest, SpeechDataset, embedded_corpus, read_manifest
from speechft.errors import ConfigError, InterruptedRun
from speechft.methods import get
from speechft.methods.base import Method, MethodConfig
from speechft.methods.report import Report
from speechft.models import EmbeddingModel, Encoder
from speechft.training import TrainingSettings
from speechft.training.loader import TrainingData


def refine(
    *,
    model: str | Path | Encoder | EmbeddingModel,
    method: str = "score",
    data: str | Path | Manifest,
    output: str | Path,
    config: MethodConfig | None = None,
    training: TrainingSettings | None = None,
    on_bad_audio: Literal["fail", "skip"] = "fail",
    max_duration: float | None = None,
    resume: bool = False,
) -> Report:
    """Refine a speech foundation model on unlabelled speech.

    Writes into ``output``: the refined model as a plain Hugging Face folder, ``report.json``,
    ``metrics.jsonl``, ``ledger.json`` (every row of the data, used or skipped and why), and
    ``checkpoints/``.

    Args:
        model: what the method's ``load`` takes (for most, :func:`speechft.models.load`), or such a
            model, which is tuned in place.
        method: one of :data:`speechft.methods.METHODS`.
        data: a manifest (JSONL or CSV), a folder of audio, or ``"embedded"``.
        output: the run's folder; made if missing. A finished run in it is an error.
        config: the method's settings; None for the paper's.
        training: how long, how fast and where; None for the paper's.
        on_bad_audio: ``"fail"`` at the first bad file, or ``"skip"`` and count.
        max_duration: longer utterances, in seconds, are bad audio; nothing is ever cut.
        resume: go on from the newest checkpoint in ``output``.

    Raises:
        ConfigError: unknown method, settings of another method, an output in use, nothing to
            resume.
        ManifestError, AudioError: the data.
        NoGradientError, DivergedError, CollapsedError: the training.
        InterruptedRun: stopped by SIGTERM or SIGINT, after a checkpoint.
    """
    from speechft.training.progress import Progress, StopOnSignal
    from speechft.training.trainer import MetricsFile, RefinementTrainer, device_of

    kind = get(method)
    config = config if config is not None else kind.Config()
    if not isinstance(config, kind.Config):
        raise ConfigError(
            f"config: {method!r} wants {kind.Config.__name__}, got {type(config).__name__}"
        )
    training = training or TrainingSettings(**kind.training_defaults)
    output = Path(output)
    checkpoint = _prepare_output(output, resume)
    device = device_of(training)

    encoder = (
        model if isinstance(model, nn.Module) else kind.load(model, config, seed=training.seed)
    )
    manifest = read_data(data)
    seconds_wanted, on_short = kind.shortest(config)
    dataset = SpeechDataset(
        manifest,
        on_bad_audio=on_bad_audio,
        min_samples=encoder.minimum_samples,
        max_duration=max_duration,
        sample_rate=encoder.sample_rate,
        wanted_samples=round(seconds_wanted * encoder.sample_rate),
        on_short=on_short,
        factors=kind.labels(config),
        workers=training.workers,
    )
    dataset.ledger.write(output / "ledger.json")
    refiner = kind.make(encoder, config, dataset, seed=training.seed).to(device)
    refiner.stopwatch.cuda = device.type == "cuda"
    if not isinstance(model, nn.Module) and not Path(model).is_dir():
        refiner.encoder_name = str(model)
    source = refiner.training_data(dataset, training, output)

    before = _mean_loss(refiner, source) if checkpoint is None else _loss_before(output)
    (output / "start.json").write_text(json.dumps({"loss_before": before}) + "\n")
    refiner.stopwatch.reset()
    progress, stop = Progress(), StopOnSignal()
    trainer = RefinementTrainer(
        refiner,
        source,
        training,
        output,
        callbacks=[
            MetricsFile(output / "metrics.jsonl", append=checkpoint is not None), progress, stop
        ],
    )  # fmt: skip
    progress.trainer = trainer
    start = time.perf_counter()
    steps = training.steps if any(p.requires_grad for p in refiner.parameters()) else 0
    try:
        if steps:
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.restore()
    seconds = time.perf_counter() - start
    if trainer.state.global_step < steps:
        raise InterruptedRun(trainer.state.global_step, output)
    phases = refiner.stopwatch.seconds()

    after = _mean_loss(refiner, source)
    refiner.save(output)
    report = Report.make(
        method=refiner,
        model=f"{type(model).__name__} in memory" if isinstance(model, nn.Module) else str(model),
        data=str(data) if not isinstance(data, Manifest) else str(data.source),
        ledger=dataset.ledger,
        repeated=dataset.repeated,
        settings={**asdict(config), **asdict(training), "warmup_steps": training.warmup},
        loss=(before, after),
        steps=trainer.state.global_step,
        seconds=seconds,
        audio_seconds=trainer.seconds_of_audio,
        phases=phases,
        device=device,
    )
    report.write(output / "report.json")
    os.remove(output / "start.json")
    return report


def read_data(data: str | Path | Manifest) -> Manifest:
    """A manifest, read unless it is one; ``"embedded"`` is the corpus that ships with speechft."""
    if isinstance(data, Manifest):
        return data
    return embedded_corpus() if data == "embedded" else read_manifest(data)


def _prepare_output(output: Path, resume: bool) -> str | None:
    """Make the folder; give the checkpoint to resume from, if that is what is wanted."""
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints = output / "checkpoints"
    newest = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if resume:
        if newest is None:
            raise ConfigError(f"resume: there is no checkpoint in {checkpoints}")
        return str(newest)
    if newest is not None or (output / "report.json").exists():
        raise ConfigError(
            f"output: {output} holds a run already; choose another folder, remove it, "
            "or go on with it (resume)"
        )
    output.mkdir(parents=True, exist_ok=True)
    return None


def _loss_before(output: Path) -> float:
    path = output / "start.json"
    if not path.exists():
        raise ConfigError(f"resume: {path} is missing; the run in this folder was finished")
    return float(json.loads(path.read_text())["loss_before"])


@torch.no_grad()
def _mean_loss(method: Method, data: TrainingData) -> float:
    """The loss in eval mode, always on the same utterances under the same perturbations."""
    training = method.training
    method.eval()
    device = next(method.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    utterances = 0
    for count, batch in data.evaluation():
        loss = method(**{name: batch[name].to(device) for name in method.inputs}).loss
        total += loss.double() * count
        utterances += count
    method.train(training)
    return float(total) / utterances
