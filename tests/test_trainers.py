"""The examples of docs/trainers take five steps each, and the steps do something."""

from __future__ import annotations

import importlib
import importlib.util
import math
from pathlib import Path

import pytest
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

FOLDER = Path(__file__).parent.parent / "docs" / "trainers"
SCRIPTS = {  # and what each needs: the module, and what to install
    "plain_pytorch": None,
    "transformers_trainer": ("transformers", "speechft[refine]"),
    "lightning_module": ("lightning", "speechft[trainers]"),
    "sentence_transformers_loss": ("sentence_transformers", "speechft[trainers]"),
    "speechbrain_brain": ("speechbrain", "speechbrain, and torchaudio of the build of torch"),
}
LEARNT_TEMPERATURE = set(SCRIPTS) - {"transformers_trainer"}


def load(name):
    """The script as a module; skips, and says why, where its framework does not import."""
    needs = SCRIPTS[name]
    if needs is not None:
        module, install = needs
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install {install}")
        try:
            importlib.import_module(module)
        except (ImportError, OSError) as error:  # OSError: a library built for another torch
            pytest.skip(f"{module} is installed and does not import ({error}); wants {install}")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


class Optimizers:
    """What the optimizers of a run were given, before the first step and now."""

    def __init__(self):
        self.steps, self.before = 0, None

    def before_step(self, optimizer, args, kwargs):
        if self.before is None:
            self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.before = [p.detach().clone() for p in self.parameters]

    def after_step(self, optimizer, args, kwargs):
        self.steps += 1

    def changed(self):
        pairs = zip(self.parameters, self.before, strict=True)
        return [not parameter.equal(before) for parameter, before in pairs]


@pytest.fixture
def optimizers():
    seen = Optimizers()
    hooks = [
        register_optimizer_step_pre_hook(seen.before_step),
        register_optimizer_step_post_hook(seen.after_step),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", SCRIPTS)
def test_five_steps(name, optimizers, capsys, tmp_path, monkeypatch):
    script = load(name)
    monkeypatch.chdir(tmp_path)
    losses = script.main()
    assert len(losses) == optimizers.steps == 5
    assert all(math.isfinite(loss) for loss in losses)
    assert 0 < losses[0] < 2 * math.log(100), "an untrained model is about as good as chance"
    assert sum(losses[-2:]) / 2 < 0.95 * losses[0], losses
    assert capsys.readouterr().out.count("loss") >= 5, "prints the loss of each step"

    changed = optimizers.changed()
    # HuBERT has one that only masking uses.
    assert sum(changed) >= len(changed) - 1, f"{sum(changed)} of {len(changed)} changed"
    scalars = [now for now, p in zip(changed, optimizers.parameters, strict=True) if p.dim() == 0]
    assert scalars == [True] * (name in LEARNT_TEMPERATURE), "the temperature is learnt"


def test_each_is_under_forty_lines_and_on_the_page():
    page = FOLDER.with_suffix(".md").read_text(encoding="utf-8")
    found = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")}
    assert set(found) == set(SCRIPTS)
    for name, text in found.items():
        assert len(text.splitlines()) < 40, name
        assert f"```{{literalinclude}} trainers/{name}.py" in page
