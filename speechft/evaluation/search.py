r"""Search by example: where in a document does something sound like the query?

Two alignments of a sequence of N frames with one of M, from a distance :math:`d_{ij}` of frames:

* **Subsequence** (:func:`subsequence_dtw`): the whole query against the part of a document that
  fits it best. A path gives every query frame one document frame, and goes on by 0, 1 or 2 of
  them,

  .. math:: R_{1j} = d_{1j}, \quad
            R_{ij} = d_{ij} + \min(R_{i-1,j}, R_{i-1,j-1}, R_{i-1,j-2}), \qquad
            \text{score} = -\frac{1}{N} \min_j R_{Nj}.

  This is the step pattern "asymmetric" (Sakoe & Chiba 1978; Giorgino, "Computing and visualizing
  dynamic time warping alignments in R", 2009), open at both ends (Müller 2007), as s3prl's QUESST
  recipe has it. Every path has N cells. So what is minimised is what is returned, the mean distance
  of a query frame, whatever the lengths. With steps (1, 0), (0, 1), (1, 1) paths differ in length,
  and the path of the least mean is not the one of the least sum: their normalisation (Hazen et al.
  2009; Anguera & Ferrarons 2013) is a heuristic. The price: what is matched may be spoken at half
  the query's speed, no slower; faster is free, so a document may be shorter than the query.

* **Whole** (:func:`dtw_distance`, :func:`dtw_distances`): both ends fixed, steps (1, 0), (0, 1) and
  (1, 1). The mean distance along the path of the least sum, and of equally cheap paths along the
  shortest: the distance of ABX (Schatz et al., "Evaluating speech features with the minimal-pair
  ABX task", 2013).

Distances of frames at the angle :math:`\theta`:

==============  =======================================  ======================================
``cosine``      :math:`1 - \cos\theta`
``cosine_exp``  :math:`e^{1 - \cos\theta} - 1`           s3prl's QUESST recipe
``angular``     :math:`\theta / \pi`                     ABXpy, libri-light
==============  =======================================  ======================================

A frame of zeros has no direction: its cosine with any frame counts as 0.

Blocks of items are compared by one matrix product each and aligned by numba, as many blocks side by
side as torch has threads, each on one thread. Blocks depend on the lengths alone, so the number of
threads changes nothing. float64 frames are compared in float64, all others in float32; sums are in
float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from speechft.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from speechft.evaluation._dtw import Starts, compiled, least_along_query, mean_along_path

FrameDistance = Literal["cosine", "cosine_exp", "angular"]

_ROWS = 1024  # frames of the first items in a block
_COLUMNS = 1024  # and of the second: 4 MiB of float32 distances
_Align = Callable[[NDArray[Any], Starts, Starts, NDArray[Any]], None]


def subsequence_dtw(
    queries: Sequence[Tensor],
    documents: Sequence[Tensor],
    *,
    distance: FrameDistance = "cosine",
    minmax: bool = False,
    progress: bool | None = None,
) -> Tensor:
    """Score of every query in every document: minus the mean distance of a query frame.

    Args:
        queries: Q tensors (N, C), floating point, each with its own N.
        documents: D tensors (M, C).
        distance: of frames, see above.
        minmax: bring the distances of each query frame to the frames of a document to 0 to 1
            first, (d - min) / (max - min), as s3prl's recipe does.
        progress: show a bar; None shows it on a terminal.

    Returns:
        (Q, D) on the CPU, the higher the better the match; 0 is perfect.

    Raises:
        ArgumentTypeError: something that is not a floating-point tensor.
        ArgumentError: no query, no document, a wrong shape, an unknown distance.
        NonFiniteError: NaN or infinity in a tensor.

    >>> query, other = torch.eye(4)[:2], torch.eye(4)[2:]
    >>> subsequence_dtw([query], [torch.cat([other, query, other]), other]).abs()
    tensor([[0., 1.]])
    """

    def align(cells: NDArray[Any], rows: Starts, columns: Starts, out: NDArray[Any]) -> None:
        compiled(least_along_query)(cells, rows, columns, minmax, out)

    items = {"queries": queries, "documents": documents}
    return -_all_pairs(align, items, distance, progress)


def dtw_distances(
    items_a: Sequence[Tensor],
    items_b: Sequence[Tensor],
    *,
    distance: FrameDistance = "cosine",
    progress: bool | None = None,
) -> Tensor:
    """Mean distance along the path of every pair (len(items_a), len(items_b)), both ends fixed.

    Args:
        items_a: tensors (N, C), floating point.
        items_b: tensors (M, C).
        distance: of frames, see above.
        progress: show a bar; None shows it on a terminal.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: as :func:`subsequence_dtw`.

    >>> dtw_distances([torch.eye(2)], [torch.eye(2), torch.eye(2)[:1]])
    tensor([[0.0000, 0.5000]])
    """
    items = {"items_a": items_a, "items_b": items_b}
    return _all_pairs(compiled(mean_along_path), items, distance, progress)


def dtw_distance(x: Tensor, y: Tensor, *, distance: FrameDistance = "cosine") -> float:
    """Mean distance along the path of x (N, C) and y (M, C), both ends fixed.

    Raises:
        ArgumentTypeError, ArgumentError, NonFiniteError: as :func:`subsequence_dtw`.

    >>> dtw_distance(torch.eye(2), torch.eye(2)[:1])
    0.5
    """
    return float(dtw_distances([x], [y], distance=distance, progress=False))


def _all_pairs(
    align: _Align,
    named: dict[str, Sequence[Tensor]],
    distance: FrameDistance,
    progress: bool | None,
) -> Tensor:
    """What ``align`` makes of the distances of every pair of two sequences of items."""
    if distance not in get_args(FrameDistance):
        names = ", ".join(map(repr, get_args(FrameDistance)))
        raise ArgumentError("distance", f"wants one of {names}, got {distance!r}")
    with _threads() as threads:
        dtype = _check(named)
        a, b = named.values()
        packed_a = [(first, last, *_packed(a[first:last], dtype))
                    for first, last in _blocks(a, _ROWS)]  # fmt: skip
        found = torch.empty(len(a), len(b), dtype=dtype)

        def compare(block: tuple[int, int]) -> int:
            # The second items are copied block by block: a collection need not fit in memory twice.
            first_b, last_b = block
            frames_b, columns = _packed(b[first_b:last_b], dtype)
            for first_a, last_a, frames_a, rows in packed_a:
                cells = _distances((frames_a @ frames_b.T).numpy(), distance)
                out = np.empty((last_a - first_a, last_b - first_b), cells.dtype)
                align(cells, rows, columns, out)
                found[first_a:last_a, first_b:last_b] = torch.from_numpy(out)
            return last_b - first_b

        bar = None
        if sys.stderr.isatty() if progress is None else progress:
            from tqdm import tqdm

            bar = tqdm(total=len(b), desc="aligning", leave=False)
        for done in threads.map(compare, _blocks(b, _COLUMNS)):
            if bar is not None:
                bar.update(done)
        if bar is not None:
            bar.close()
    return found


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, and meanwhile every op on one thread.

    Ops that are spread over all cores from each of several threads fight for these, and wait for
    one another spinning: on busy cores that took three times as long. What torch sets is partly a
    thread's own and partly common, so it is set in each, and set back.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(count)


def _distances(cosines: NDArray[Any], distance: FrameDistance) -> NDArray[Any]:
    """Distances of frames, in the place of their cosines."""
    np.clip(cosines, -1.0, 1.0, out=cosines)
    if distance == "angular":
        np.arccos(cosines, out=cosines)
        cosines /= np.pi
        return cosines
    np.subtract(1.0, cosines, out=cosines)
    if distance == "cosine_exp":
        np.exp(cosines, out=cosines)  # expm1 is ten times slower; its digits went in 1 - cos
        cosines -= 1.0
    return cosines


def _packed(items: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Starts]:
    """All frames of some items at unit length, and where each item begins and the last ends."""
    frames = torch.cat([item.detach().to("cpu", dtype) for item in items])
    # By the largest value first: the squares of tiny or huge values are 0 or infinite.
    largest = frames.abs().amax(1, keepdim=True)
    frames = frames / torch.where(largest == 0, 1.0, largest)
    return normalize(frames, dim=1), np.cumsum([0, *map(len, items)])


def _blocks(items: Sequence[Tensor], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of items with at most so many frames; a longer item is alone."""
    first, frames = 0, 0
    for index, item in enumerate(items):
        if index > first and frames + len(item) > most:
            yield first, index
            first, frames = index, 0
        frames += len(item)
    yield first, len(items)


def _check(sequences: dict[str, Sequence[Tensor]]) -> torch.dtype:
    """The dtype to compare in."""
    channels, dtype = None, torch.float32
    for name, items in sequences.items():
        if not len(items):
            raise ArgumentError(name, "wants at least one tensor, got none")
        for index, item in enumerate(items):
            if not isinstance(item, Tensor) or not item.is_floating_point():
                what = item.dtype if isinstance(item, Tensor) else type(item).__name__
                raise ArgumentTypeError(
                    name, f"wants floating-point tensors, got {what} at {index}"
                )
            if item.dim() != 2 or 0 in item.shape:
                raise ArgumentError(
                    name, f"wants shapes (frames, C), got {tuple(item.shape)} at {index}"
                )
            channels = item.shape[1] if channels is None else channels
            if item.shape[1] != channels:
                raise ArgumentError(
                    name, f"wants {channels} channels as all others, got {item.shape[1]} at {index}"
                )
            if not item.isfinite().all():
                raise NonFiniteError(name, f"the tensor at {index} holds NaN or infinity")
            dtype = torch.promote_types(dtype, item.dtype)
    return dtype
