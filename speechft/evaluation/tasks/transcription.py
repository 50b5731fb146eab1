"""Recognition: a CTC head on a frozen encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from speechft.data import Manifest, Utterance
from speechft.errors import ManifestError
from speechft.evaluation.metrics import error_rate
from speechft.evaluation.result import Figure, TaskResult
from speechft.evaluation.splits import Split, random_split
from speechft.evaluation.tasks.alignment import PAUSES, phones_of
from speechft.evaluation.tasks.base import (
    Context,
    Task,
    chosen_layers,
    describe_split,
    kept,
    official_split,
    where,
    whole,
)

_BLANK = 0


class CTCHead(nn.Module):
    """A learnt weighting of layers, a projection, by choice a BLSTM, and a linear layer."""

    def __init__(self, layers: int, size: int, units: int, *, hidden: int, blstm: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))
        self.norm = nn.LayerNorm(size)
        self.project = nn.Linear(size, hidden)
        self.blstm = (
            nn.LSTM(hidden, hidden, blstm, bidirectional=True, batch_first=True) if blstm else None
        )
        self.out = nn.Linear(2 * hidden if blstm else hidden, units)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Frames (B, T, K, C) and valid lengths to log-probabilities (B, T, units)."""
        mixed = torch.einsum("btkc,k->btc", frames, self.weights.softmax(0))
        hidden = self.project(self.norm(mixed))
        if self.blstm is not None:
            packed = nn.utils.rnn.pack_padded_sequence(
                hidden, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            hidden = nn.utils.rnn.pad_packed_sequence(
                self.blstm(packed)[0], batch_first=True, total_length=frames.shape[1]
            )[0]
        logits: Tensor = self.out(hidden).log_softmax(-1)
        return logits


@dataclass(frozen=True)
class Transcription(Task):
    """Phone or word recognition with a CTC head on the frozen encoder: PER, or CER and WER.

    The head mixes the layers with learnt weights, projects to ``hidden``, by choice runs a BLSTM,
    and predicts units: phones (without pauses) where the data has phone labels, otherwise the
    characters of the text, in lower case. AdamW with warm-up and linear decay; the step with the
    least CTC loss on validation utterances is the one that is tested; greedy decoding, no language
    model. Parts named train, validation and test are used as they are; otherwise the seed draws
    utterances. Errors are counted by jiwer over all tested utterances.

    Attributes:
        units: ``"phones"``, ``"characters"``, or ``"auto"``: phones where there are any.
        layers: that are mixed; None: all.
        steps, learning_rate, batch_seconds: of training.
        hidden: size of the projection.
        blstm: layers of BLSTM; SUPERB's recogniser of words has 2 of 1024, that of phones none.
        test: share of utterances to test on where the data has no parts.
    """

    name: ClassVar[str] = "transcription"
    uses_parts: ClassVar[bool] = True

    units: Literal["auto", "phones", "characters"] = "auto"
    layers: tuple[int, ...] | None = None
    steps: int = 400
    learning_rate: float = 3e-3
    batch_seconds: float = 64.0
    hidden: int = 256
    blstm: int = 0
    test: float = 0.25

    def run(self, context: Context) -> TaskResult:
        """See :class:`Task`."""
        every = whole(context.data)
        units = self.units
        if units == "auto":
            units = "phones" if any(row.phones for row in every) else "characters"
        manifest = kept(
            every,
            lambda row: (units != "phones" or row.phones is not None) and bool(_units(row, units)),
        )
        if len(manifest) < 3:
            path, _ = where(every)
            raise ManifestError(path, None, f"{len(manifest)} utterances have {units}; wants 3")
        targets = [_units(row, units) for row in manifest]
        names = ["<blank>", *sorted({unit for target in targets for unit in target})]
        layers = chosen_layers(self.layers, context.embeddings)
        frames = context.embeddings.frames(manifest, layers=layers).values
        result = self.result(
            context, f"CTC head over {units}, greedy decoding; {describe_split(context)}"
        )
        values: dict[str, list[float]] = {}
        for seed in context.seeds:
            split = self._split(context, manifest, seed)
            head = self._train(frames, targets, names, split, seed)
            for name, value in self._test(head, frames, targets, names, split.test, units).items():
                values.setdefault(name, []).append(value)
        result.figures = [
            Figure(name, tuple(seeds), higher_is_better=False) for name, seeds in values.items()
        ]
        result.counts = {
            "utterances": len(manifest), units: len(names) - 1, "steps": self.steps,
        }  # fmt: skip
        if len(manifest) < len(every):
            without = len(every) - len(manifest)
            result.notes.append(f"{without} utterances have no {units} and are left out")
        return result

    def _split(self, context: Context, manifest: Manifest, seed: int) -> Split:
        given = official_split(context.data, manifest, [""] * len(manifest), seed)
        if given is not None:
            return given
        return random_split([row.id for row in manifest], seed, test=self.test)

    def _train(
        self,
        frames: list[Tensor],
        targets: list[list[str]],
        names: list[str],
        split: Split,
        seed: int,
    ) -> CTCHead:
        number = {name: index for index, name in enumerate(names)}
        coded = [torch.tensor([number[unit] for unit in target]) for target in targets]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            _, layers, size = frames[0].shape
            head = CTCHead(layers, size, len(names), hidden=self.hidden, blstm=self.blstm)
        optimizer = torch.optim.AdamW(head.parameters(), self.learning_rate, weight_decay=0.01)
        warmup = max(1, self.steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / warmup, (self.steps - step) / (self.steps - warmup)),
        )
        rng = np.random.default_rng(seed)
        best, best_loss = copy.deepcopy(head.state_dict()), math.inf
        queue: list[list[int]] = []
        every = max(1, self.steps // 10)
        for step in range(self.steps):
            queue = queue or _batches(
                rng.permutation(split.fit).tolist(), frames, self.batch_seconds
            )
            loss = _loss(head, frames, coded, queue.pop())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % every == 0 or step + 1 == self.steps:
                now = self._validate(head, frames, coded, split.validation)
                if now < best_loss:
                    best, best_loss = copy.deepcopy(head.state_dict()), now
        head.load_state_dict(best)
        return head

    def _validate(
        self, head: CTCHead, frames: list[Tensor], coded: list[Tensor], rows: list[int]
    ) -> float:
        """CTC loss a unit over all of these utterances."""
        total, units = 0.0, 0
        for batch in _batches(rows, frames, self.batch_seconds):
            count = sum(len(coded[row]) for row in batch)
            with torch.no_grad():
                total += float(_loss(head, frames, coded, batch)) * count
            units += count
        return total / units

    def _test(
        self,
        head: CTCHead,
        frames: list[Tensor],
        targets: list[list[str]],
        names: list[str],
        rows: list[int],
        units: str,
    ) -> dict[str, float]:
        spoken = []
        with torch.no_grad():
            for row in rows:
                logits = head(frames[row][None], torch.tensor([len(frames[row])]))[0]
                path = torch.unique_consecutive(logits.argmax(-1)).tolist()
                spoken.append([names[unit] for unit in path if unit != _BLANK])
        wanted = [targets[row] for row in rows]
        rate = error_rate(wanted, spoken).rate
        if units == "phones":
            return {"PER": rate}
        words = [[("".join(said)).split() for said in side] for side in (wanted, spoken)]
        return {"CER": rate, "WER": error_rate(*words).rate}


def _units(row: Utterance, units: str) -> list[str]:
    if units == "phones":
        return [phone.label for phone in phones_of(row) if phone.label not in PAUSES]
    letters = "".join(c if c.isalnum() or c == "'" else " " for c in (row.text or "").lower())
    return list(" ".join(letters.split()))


def _batches(order: Sequence[int], frames: list[Tensor], seconds: float) -> list[list[int]]:
    """Consecutive rows, as many as so many seconds of frames (50 a second) hold, at least one."""
    batches: list[list[int]] = [[]]
    total = 0
    for row in order:
        if batches[-1] and total + len(frames[row]) > seconds * 50:
            batches.append([])
            total = 0
        batches[-1].append(row)
        total += len(frames[row])
    return batches


def _loss(head: CTCHead, frames: list[Tensor], coded: list[Tensor], rows: list[int]) -> Tensor:
    """CTC loss a unit, over some utterances. One too short for its units has no path: counts 0."""
    lengths = torch.tensor([len(frames[row]) for row in rows])
    padded = pad_sequence([frames[row] for row in rows], batch_first=True)
    logits = head(padded, lengths).transpose(0, 1)
    sizes = torch.tensor([len(coded[row]) for row in rows])
    target = torch.cat([coded[row] for row in rows])
    total = ctc_loss(
        logits, target, lengths, sizes, blank=_BLANK, reduction="sum", zero_infinity=True
    )
    return total / sizes.sum()
