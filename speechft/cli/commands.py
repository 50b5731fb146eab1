"""The commands. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Optional

from speechft.cli.flags import UsageError, make_parser, parse
from speechft.cli.names import nearest

__all__ = ["COMMANDS", "Command", "UsageError"]


_REQUIRED = {
    "--model": "a Hugging Face name or folder, or speechft/hubert-mini; for dino also xvector, "
    "ecapa-512, ecapa-1024, resnet34 (from scratch)",
    "--data": "a manifest (JSONL or CSV), a folder of audio, or 'embedded'",
    "--output": "the folder to write",
}
_RANDOM = (
    "note: this encoder starts from random weights. The run shows that everything works, and how "
    "fast; its features are of no use."
)


class Command(NamedTuple):
    """What a command does, in a line, and the function that does it."""

    summary: str
    run: Callable[[Sequence[str]], int]


def refine(arguments: Sequence[str]) -> int:
    """``speechft refine METHOD --model ... --data ... --output ...``."""
    from speechft.methods import METHODS
    from speechft.training import TrainingSettings

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: speechft refine METHOD --model MODEL --data DATA --output FOLDER ...\n")
        print(f"methods: {', '.join(METHODS)}   (speechft refine METHOD --help for its flags)")
        return 0 if arguments else 2
    name, *rest = arguments
    if name.startswith("-") or name not in METHODS:
        raise UsageError(f"no method {name!r}{nearest(name, METHODS)}")
    method = METHODS[name]
    parser = make_parser(f"refine {name}", f"Refine an encoder with {method.source}.")
    for flag, text in _REQUIRED.items():
        parser.add_argument(flag, type=str, required=True, help=text)
    bad = "what to do with a file that cannot be used"
    parser.add_argument("--on_bad_audio", type=Literal["fail", "skip"], default="fail", help=bad)
    longest = "seconds; longer utterances are bad audio"
    parser.add_argument("--max_duration", type=Optional[float], default=None, help=longest)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_class_arguments(method.Config)
    parser.add_class_arguments(TrainingSettings)
    parser.set_defaults(dict(method.training_defaults))
    if method.presets:
        known = f"published settings ({', '.join(method.presets)}), or a YAML file of settings"
        parser.add_argument("--preset", type=Optional[str], default=None, help=known)
        chosen = _flag(rest, "--preset")
        if chosen is not None:
            of_method, of_training = method.preset(chosen)
            parser.set_defaults({**of_training, **of_method})
    values = vars(parse(parser, rest))

    from speechft.methods.refine import refine as run

    _quiet()
    print(f"{name} on {values['data']} → {values['output']}", file=sys.stderr)
    if values["model"].endswith("-untrained"):
        print(_RANDOM, file=sys.stderr)
    report = run(
        model=values["model"],
        method=name,
        data=values["data"],
        output=values["output"],
        config=_pick(method.Config, values),
        training=_pick(TrainingSettings, values),
        on_bad_audio=values["on_bad_audio"],
        max_duration=values["max_duration"],
        resume=values["resume"],
    )
    print(f"\n{report}\n\nwritten to {values['output']}: the model, report.json, metrics.jsonl")
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """``speechft evaluate --model ... --tasks ...``."""
    from speechft.evaluation.layouts import read_evaluation_data
    from speechft.evaluation.tasks import TASKS

    parser = make_parser(
        "evaluate", f"Judge an encoder, frozen, by some tasks: {', '.join(TASKS)}."
    )
    models = "a Hugging Face name or folder, speechft/hubert-mini, or log-mel (what to beat)"
    parser.add_argument("--model", type=str, required=True, help=models)
    parser.add_argument("--tasks", type=str, nargs="+", required=True, help=", ".join(TASKS))
    data = "'embedded', a manifest, or a folder in an official layout"
    parser.add_argument("--data", type=str, default="embedded", help=data)
    parser.add_function_arguments(read_evaluation_data, "read", skip={"source"})
    parser.add_argument("--output", type=Optional[str], default=None, help=_REQUIRED["--output"])
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--device", type=Optional[str], default=None, help="None: a GPU if any")
    seconds = "of padded speech in a batch"
    parser.add_argument("--batch_seconds", type=float, default=64.0, help=seconds)
    for name, task in TASKS.items():
        parser.add_class_arguments(task, name)
    values = parse(parser, arguments)

    from speechft.evaluation.run import evaluate as run

    _quiet()
    # A name that is none is met by evaluate.
    tasks = [TASKS[n](**vars(values[n])) if n in TASKS else n for n in values["tasks"]]
    report = run(
        model=values["model"],
        tasks=tasks,
        data=read_evaluation_data(values["data"], **vars(values["read"])),
        output=values["output"],
        seeds=values["seeds"],
        device=values["device"],
        batch_seconds=values["batch_seconds"],
    )
    print(report)
    if report.output is not None:
        pictures = [path.name for result in report.results.values() for path in result.plots]
        print(f"\nwritten to {report.output}: {', '.join(['evaluation.json', *pictures])}")
    return 0


def transfer(arguments: Sequence[str]) -> int:
    """``speechft transfer --model ... --data ... --label ... --output ...``."""
    from speechft.methods.stages import STAGES
    from speechft.methods.transfer import TransferConfig

    parser = make_parser(
        "transfer", "Train an embedding model for a labelled task, in stages, and judge it."
    )
    models = "a folder, xvector, ecapa-512, ecapa-1024, resnet34, or what refine takes"
    parser.add_argument("--model", type=str, required=True, help=models)
    data = "'embedded', a manifest, or a folder in an official layout"
    parser.add_argument("--data", type=str, required=True, help=data)
    parser.add_argument("--output", type=str, required=True, help=_REQUIRED["--output"])
    parser.add_argument("--layout", type=str, default="auto", help="of the data")
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto")
    grid = "settings of all stages to try: chunk_seconds=1,2,4 augmentation=none,student"
    parser.add_argument("--grid", type=str, nargs="+", default=[], help=grid)
    parser.add_class_arguments(TransferConfig)
    known = f"{', '.join(STAGES)}, or a YAML file that lists them"
    next(a for a in parser._actions if "--stages" in a.option_strings).help = known
    values = vars(parse(parser, arguments))

    from speechft.methods.transfer import parse_grid
    from speechft.methods.transfer import transfer as run

    _quiet()
    report = run(
        model=values["model"],
        data=values["data"],
        output=values["output"],
        config=_pick(TransferConfig, values),
        grid=parse_grid(values["grid"]),
        layout=values["layout"],
        device=values["device"],
    )
    print(f"{report}\n\nwritten to {values['output']}: transfer.json and the models")
    return 0


def two_step(arguments: Sequence[str]) -> int:
    """``speechft two-step --model ... --data ... --label ... --output ...``."""
    from speechft.methods.two_step_config import TwoStepConfig

    parser = make_parser(
        "two-step", "Tune by combined losses, then an adapter; beside it end to end; judge both."
    )
    models = "what refine takes, or xvector, ecapa-512, ecapa-1024, resnet34 (from scratch)"
    parser.add_argument("--model", type=str, required=True, help=models)
    data = "'embedded', a manifest, or a folder in an official layout"
    parser.add_argument("--data", type=str, required=True, help=data)
    space = "what step one improves the space on, as --data; without it, what the classifier learns"
    parser.add_argument("--space_data", type=str, default=None, help=space)
    parser.add_argument("--output", type=str, required=True, help=_REQUIRED["--output"])
    parser.add_argument("--layout", type=str, default="auto", help="of the data")
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto")
    parser.add_class_arguments(TwoStepConfig)
    values = vars(parse(parser, arguments))

    from speechft.methods.two_step import two_step as run

    _quiet()
    report = run(
        model=values["model"],
        data=values["data"],
        output=values["output"],
        config=_pick(TwoStepConfig, values),
        space_data=values["space_data"],
        layout=values["layout"],
        device=values["device"],
    )
    print(f"{report}\n\nwritten to {values['output']}: two_step.json and the models")
    return 0


def iterate(arguments: Sequence[str]) -> int:
    """``speechft iterate --model ... --data ... --output ...``: pseudo-labels, in rounds."""
    from speechft.methods.iteration import IterationConfig

    parser = make_parser("iterate", "Train an embedding model on clusters of unlabelled speech.")
    model = "the folder of an embedding model, which refine dino wrote say"
    parser.add_argument("--model", type=str, required=True, help=model)
    for flag in ("--data", "--output"):
        parser.add_argument(flag, type=str, required=True, help=_REQUIRED[flag])
    parser.add_argument("--device", type=Literal["auto", "cpu", "cuda"], default="auto")
    parser.add_class_arguments(IterationConfig)
    values = vars(parse(parser, arguments))

    from speechft.methods.iteration import iterate as run

    _quiet()
    report = run(
        model=values["model"],
        data=values["data"],
        output=values["output"],
        config=_pick(IterationConfig, values),
        device=values["device"],
    )
    print(f"{report}\n\nwritten to {values['output']}: iteration.json, manifests and models")
    return 0


def units(arguments: Sequence[str]) -> int:
    """``speechft units --model ... --data ... --output ...``: discrete units of speech."""
    parser = _plain("units", "Write the discrete units of utterances, one line of JSON each.")
    model = "a folder that refine spin wrote"
    parser.add_argument("--model", metavar="FOLDER", required=True, help=model)
    parser.add_argument("--data", metavar="DATA", required=True, help=_REQUIRED["--data"])
    parser.add_argument("--output", metavar="FILE", required=True, help="the .jsonl file to write")
    merged = "runs of the same unit as one, with their durations in frames"
    parser.add_argument("--merge", action="store_true", help=merged)
    bad = "what to do with a file that cannot be used"
    parser.add_argument("--on_bad_audio", choices=["fail", "skip"], default="fail", help=bad)
    seconds = "of padded speech in a batch"
    parser.add_argument("--batch_seconds", type=float, default=64.0, help=seconds)
    parser.add_argument("--device", help="left out: a GPU if there is one")
    values = _parse_plain(parser, arguments)

    import torch

    from speechft.data import SpeechDataset
    from speechft.evaluation.units import extract_units, unit_lines, write_units
    from speechft.methods.refine import read_data
    from speechft.models import load_units

    _quiet()
    device = values.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = load_units(values.model, device=device)
    dataset = SpeechDataset(
        read_data(values.data),
        on_bad_audio=values.on_bad_audio,
        min_samples=found.minimum_samples,
        sample_rate=found.sample_rate,
    )
    of_each = extract_units(found, dataset, batch_seconds=values.batch_seconds)
    write_units(values.output, unit_lines(dataset.manifest, of_each, merge=values.merge))
    frames = sum(map(len, of_each))
    skipped = len(dataset.ledger.skipped)
    print(
        f"{len(dataset)} utterances, {frames:,} frames of {found.codes} codes"
        f"{f', {skipped} rows skipped' if skipped else ''}; written to {values.output}"
    )
    return 0


def check(arguments: Sequence[str]) -> int:
    """``speechft check DATA``: read every file and say what is there."""
    parser = _plain("check", "Read all audio of a data set and say what is there and what is bad.")
    parser.add_argument("data", help="a manifest (JSONL or CSV), a folder of audio, or 'embedded'")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    values = _parse_plain(parser, arguments)

    from speechft.data import check, embedded_corpus

    data = embedded_corpus() if values.data == "embedded" else values.data
    report = check(data, workers=values.workers)
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if values.json else report)
    return 0 if report.ok else 3


def augment(arguments: Sequence[str]) -> int:
    """``speechft augment IN OUT --chain FILE``: hear and see what a chain does to a file."""
    parser = _plain("augment", "Perturb a file as a run would, and say what was drawn for it.")
    parser.add_argument("source", metavar="IN", nargs="?", help="an audio file")
    parser.add_argument("output", metavar="OUT", nargs="?", help="a .wav, .flac or .ogg to write")
    chain = "a YAML file that lists augmentations, or such a list itself: '[Speed, MuLaw]'"
    parser.add_argument("--chain", metavar="FILE", help=chain)
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--epoch", type=int, default=0, help="of the run")
    view = "folded into the key, for methods with several views (SCORE: 0); left out: none is"
    parser.add_argument("--view", type=int, help=view)
    identity = "of the utterance in the run's data; left out: the file's name without its ending"
    parser.add_argument("--id", help=identity)
    copies = "how many, of as many epochs in turn: OUT-0.wav, OUT-1.wav, ..."
    parser.add_argument("--copies", type=int, default=1, help=copies)
    picture = "a PNG: waveforms and spectrograms before and after"
    parser.add_argument("--plot", metavar="PICTURE", help=picture)
    parser.add_argument("--list", action="store_true", help="print all augmentations, and stop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    values = _parse_plain(parser, arguments)

    if values.list:
        from speechft.cli.operations import list_operations, operations_as_dict

        print(json.dumps(operations_as_dict(), indent=2) if values.json else list_operations())
        return 0
    for name, value in (("IN", values.source), ("OUT", values.output), ("--chain", values.chain)):
        if value is None:
            raise UsageError(f"{name} is missing: speechft augment IN OUT --chain FILE, or --list")
    from speechft.cli.augment import run

    outcome = run(
        values.source,
        values.output,
        values.chain,
        seed=values.seed,
        epoch=values.epoch,
        view=values.view,
        copies=values.copies,
        utterance=values.id,
        plot=values.plot,
    )
    found = outcome.to_dict
    print(json.dumps(found(), indent=2, ensure_ascii=False) if values.json else outcome)
    return 0


def grid(arguments: Sequence[str]) -> int:
    """``speechft grid``: have an engine say every text in every voice."""
    parser = _plain("grid", "Make a grid of speech, where every voice says every text.")
    parser.add_argument("--texts", metavar="FILE", help="what to say, a text a line")
    parser.add_argument("--voices", nargs="+", metavar="VOICE", help="of the engine")
    engines = "espeak-ng, flite, festival, piper, or a command with {text}, {voice}, {out} in it"
    parser.add_argument("--engine", default="espeak-ng", help=engines)
    control = "a further factor: pitch=20,50,80 of espeak-ng; may be given several times"
    parser.add_argument(
        "--control", action="append", default=[], metavar="NAME=VALUES", help=control
    )
    condition = "a further factor, done to what was said: noise=clean,street.yaml, where clean is "
    condition += "nothing done, and a file a chain of augmentations; may be given several times"
    parser.add_argument(
        "--condition", action="append", default=[], metavar="NAME=VALUES", help=condition
    )
    each = "conditions that are drawn for each voice and text; the others once for all"
    parser.add_argument("--draw_each", nargs="+", default=[], metavar="NAME", help=each)
    parser.add_argument("--output", metavar="FOLDER", help="what is there already is kept")
    parser.add_argument("--seed", type=int, default=0, help="for engines and conditions")
    parser.add_argument("--workers", type=int, help="at a time; left out: one a processor")
    parser.add_argument("--list_voices", action="store_true", help="print the engine's, and stop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    values = _parse_plain(parser, arguments)

    from speechft.grid import GridSpec, engine, make_grid

    speaker = engine(values.engine)
    if values.list_voices:
        print("\n".join(speaker.voices()))
        return 0
    for flag in ("texts", "voices", "output"):
        if getattr(values, flag) is None:
            raise UsageError(f"--{flag} is missing")

    from speechft.cli.grid import parse_conditions, parse_controls, read_texts

    spec = GridSpec(
        texts=read_texts(values.texts),
        voices=values.voices,
        controls=parse_controls(values.control),
        seed=values.seed,
        conditions=parse_conditions(values.condition),
        draw_each=values.draw_each,
    )
    account = make_grid(spec, speaker, values.output, workers=values.workers)
    if values.json:
        print(json.dumps(account.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(f"{account}\nwritten to {values.output}: manifest.jsonl, account.json, audio/")
    return 0


def export(arguments: Sequence[str]) -> int:
    """``speechft export MODEL FILE.onnx``: a model for other runtimes."""
    parser = _plain("export", "Write an encoder, or a model of subspaces, as ONNX.")
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face name or folder")
    parser.add_argument("output", metavar="FILE", help="the .onnx file to write")
    values = _parse_plain(parser, arguments)

    from speechft.models import load, load_subspaces
    from speechft.models.subspaces_saving import export_onnx, is_subspace_folder

    _quiet()
    split = is_subspace_folder(values.model)
    export_onnx(load_subspaces(values.model) if split else load(values.model), values.output)
    print(f"written to {values.output}")
    return 0


def bench(arguments: Sequence[str]) -> int:
    """``speechft bench OP``: time an op against its reference and its peers."""
    from speechft.bench.run import main

    return int(main(arguments))


def doctor(arguments: Sequence[str]) -> int:
    """``speechft doctor``: what runs here."""
    parser = _plain("doctor", "Say what runs here: torch, devices, kernels, backends of each op.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    values = _parse_plain(parser, arguments)

    from speechft.cli.doctor import examine, table

    found = examine()
    print(json.dumps(found, indent=2) if values.json else table(found))
    return 0


def _flag(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag that says what the defaults of others are."""
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None


def _pick(cls: type[Any], values: dict[str, Any]) -> Any:
    """Settings from the values of flags; those of a group become settings of their own."""
    kinds = typing.get_type_hints(cls)
    return cls(
        **{
            field.name: _pick(kinds[field.name], vars(values[field.name]))
            if dataclasses.is_dataclass(kinds[field.name])
            else values[field.name]
            for field in dataclasses.fields(cls)
        }
    )


def _quiet() -> None:
    """No bars and warnings of others between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message)


def _plain(command: str, description: str) -> _Parser:
    return _Parser(prog=f"speechft {command}", description=description, allow_abbrev=False)


def _parse_plain(parser: _Parser, arguments: Sequence[str]) -> argparse.Namespace:
    values, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise UsageError(f"no flag {unknown[0]}{nearest(unknown[0], known)}")
    return values


COMMANDS = {
    "refine": Command("refine a model on unlabelled speech", refine),
    "transfer": Command("train an embedding model for a labelled task, in stages", transfer),
    "two-step": Command("tune by combined losses and an adapter, beside end to end", two_step),
    "iterate": Command("train an embedding model on clusters of unlabelled speech", iterate),
    "units": Command("write the discrete units of speech, with a model of Spin", units),
    "evaluate": Command("judge an encoder by tasks: phones, query, speaker, ...", evaluate),
    "augment": Command("perturb a file as a run would: hear and see it", augment),
    "grid": Command("make a grid of speech: every voice says every text", grid),
    "export": Command("write a model as ONNX", export),
    "check": Command("read all audio of a data set and say what is bad", check),
    "bench": Command("time an op against its reference and its peers", bench),
    "doctor": Command("say what runs here", doctor),
}
