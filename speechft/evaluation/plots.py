"""Pictures of results that people would rather look at."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from speechft.evaluation.result import Figure, TaskResult

_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.999)


def draw(result: TaskResult, folder: Path) -> list[Path]:
    """Every picture that a result is worth; the files written."""
    written = []
    if len({figure.layer for figure in result.figures} - {None}) > 1:
        path = folder / f"{result.task}-layers.png"
        layer_curves({"": result}, path)
        written.append(path)
    if "det" in result.curves:
        path = folder / f"{result.task}-det.png"
        det(result.curves["det"], path)
        written.append(path)
    if len({figure.of for figure in result.figures if figure.name == "probe"}) > 1:
        path = folder / f"{result.task}-matrix.png"
        matrix(result, path)
        written.append(path)
    for space, vectors, labels, factor in result.curves.get("maps", ()):
        if min(vectors.shape) < 4:
            continue
        path = folder / f"{result.task}-{space}.png"
        scatter(vectors, labels, path, title=f"{space} of {result.data}, t-SNE, by {factor}")
        written.append(path)
    return written


def layer_curves(results: dict[str, TaskResult], path: str | Path, *, title: str = "") -> None:
    """Figures by layer, a panel a metric, a line a model and condition, spread as a band.

    Args:
        results: of one task, by the name of the model.
        path: of the PNG.
        title: None: the task and its data.
    """
    plt = _pyplot()
    first = next(iter(results.values()))
    metrics = list(dict.fromkeys((figure.name, figure.of) for figure in first.figures))
    fig, axes = plt.subplots(
        1, len(metrics), figsize=(4.6 * len(metrics), 3.8), squeeze=False, layout="constrained"
    )
    conditions = list(dict.fromkeys(figure.condition for figure in first.figures))
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for axis, (name, of) in zip(axes[0], metrics, strict=True):
        styles = itertools.cycle(("-", "--", ":", "-."))
        for style, (model, result) in zip(styles, results.items(), strict=False):
            lines: dict[str, list[Figure]] = defaultdict(list)
            for figure in result.figures:
                if (figure.name, figure.of) == (name, of) and figure.layer is not None:
                    lines[figure.condition].append(figure)
            for number, (condition, figures) in enumerate(lines.items()):
                layers = [figure.layer for figure in figures]
                means = np.array([figure.mean for figure in figures])
                spread = np.array([figure.spread or 0.0 for figure in figures])
                several = len(conditions) > 1
                label = ", ".join(part for part in (model, condition if several else "") if part)
                colour = colours[number % len(colours)]
                if len(layers) == 1 and len(results) > 1:  # log-mel, say: a level to beat
                    axis.axhline(means[0], ls=style, color="0.5", label=label or None)
                    continue
                axis.plot(layers, means, style, marker="o", ms=4, color=colour, label=label or None)
                axis.fill_between(layers, means - spread, means + spread, color=colour, alpha=0.12)
        axis.set_xlabel("layer")
        axis.set_title(f"{name} ({of})" if of else name, fontsize=10)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if axes[0][0].get_legend_handles_labels()[1]:
        axes[0][-1].legend(
            fontsize=8,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
            handlelength=3.5,
        )
    fig.suptitle(title or f"{first.task} on {first.data}", fontsize=11)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def det(curves: dict[str, tuple[Any, Any, Any]], path: str | Path, *, title: str = "DET") -> None:
    """Detection error trade-off: misses against false alarms on normal-deviate axes.

    Args:
        curves: what :func:`speechft.evaluation.metrics.det_curve` gives, by name.
        path: of the PNG.
        title: of the picture.
    """
    plt = _pyplot()
    fig, axis = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    for name, (_, p_miss, p_fa) in curves.items():
        misses, alarms = np.asarray(p_miss), np.asarray(p_fa)
        floor = 1e-6
        across = _deviate(np.clip(alarms, floor, 1 - floor))
        up = _deviate(np.clip(misses, floor, 1 - floor))
        axis.plot(across, up, drawstyle="steps-post", label=name or None)
    ends = _deviate(np.array([0.0005, 0.98]))
    axis.plot(ends, ends, color="0.6", lw=0.8, ls="--")
    ticks = [tick for tick in _TICKS if tick < 0.98]
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(_deviate(np.array(ticks)), [f"{100 * tick:g}" for tick in ticks])
    axis.set_xlim(*ends)
    axis.set_ylim(*ends)
    axis.set_xlabel("false alarms, %")
    axis.set_ylabel("misses, %")
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    if any(curves):
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    fig.savefig(path, dpi=130)
    plt.close(fig)


def matrix(result: TaskResult, path: str | Path, *, title: str = "") -> None:
    """Which subspace knows which factor: a cell for each, dark where a probe finds it.

    A cell shows the accuracy of the probe, and below it chance and the EER. Its colour is the
    accuracy on the way from chance (white) to 1.

    Args:
        result: of the task ``leakage``.
        path: of the PNG.
        title: None: the task and its data.
    """
    plt = _pyplot()
    found: dict[tuple[str, str], dict[str, Figure]] = defaultdict(dict)
    for figure in result.figures:
        factor, _, space = figure.of.partition(" from ")
        found[space, factor][figure.name] = figure
    spaces = list(dict.fromkeys(space for space, _ in found))
    factors = list(dict.fromkeys(factor for _, factor in found))
    shade = np.full((len(spaces), len(factors)), np.nan)
    fig, axis = plt.subplots(
        figsize=(2.4 + 1.9 * len(factors), 1.3 + 0.85 * len(spaces)), layout="constrained"
    )
    for row, space in enumerate(spaces):
        for column, factor in enumerate(factors):
            cell = found[space, factor]
            lines = []
            if "probe" in cell:
                probe, chance = cell["probe"].mean, cell["chance"].mean
                shade[row, column] = max(0.0, (probe - chance) / max(1 - chance, 1e-9))
                lines += [f"{100 * probe:.1f} %", f"chance {100 * chance:.1f} %"]
            if "EER" in cell:
                lines.append(f"EER {100 * cell['EER'].mean:.1f} %")
            colour = "white" if shade[row, column] > 0.55 else "black"
            axis.text(column, row, "\n".join(lines), ha="center", va="center", fontsize=8,
                      color=colour)  # fmt: skip
    axis.imshow(shade, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axis.set_xticks(range(len(factors)), factors)
    axis.set_yticks(range(len(spaces)), spaces)
    axis.xaxis.tick_top()
    axis.set_xlabel("factor that is looked for")
    axis.xaxis.set_label_position("top")
    axis.set_ylabel("in the subspace")
    axis.tick_params(length=0)
    fig.suptitle(title or f"{result.task} on {result.data}", fontsize=11)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def scatter(
    vectors: Tensor,
    labels: Sequence[str | None],
    path: str | Path,
    *,
    title: str = "",
    seed: int = 0,
) -> None:
    """Embeddings in two dimensions by t-SNE of cosines, a colour a label.

    Args:
        vectors: (N, C), N at least 4.
        labels: N strings, None where there is none; beyond 20 different ones the legend is left
            out.
        path: of the PNG.
        title: of the picture.
        seed: of t-SNE's start.
    """
    from sklearn.manifold import TSNE

    plt = _pyplot()
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    places = TSNE(
        perplexity=perplexity, metric="cosine", init="pca", random_state=seed
    ).fit_transform(vectors.numpy())
    fig, axis = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
    names = sorted({label for label in labels if label is not None})
    colours = plt.get_cmap("tab20" if len(names) > 10 else "tab10")
    for number, name in enumerate(names):
        mine = [row for row, label in enumerate(labels) if label == name]
        axis.scatter(*places[mine].T, s=14, color=colours(number % colours.N), label=name)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title or "t-SNE", fontsize=11)
    if len(names) <= 20:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def _deviate(p: Any) -> Any:
    """The normal distribution's inverse."""
    from statistics import NormalDist

    normal = NormalDist()
    return np.array([normal.inv_cdf(float(value)) for value in np.atleast_1d(p)])


def _pyplot() -> Any:
    """Matplotlib, drawing into files.

    Raises:
        ImportError: it is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
