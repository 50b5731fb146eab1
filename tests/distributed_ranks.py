"""A function run on several ranks at once: processes of this machine, joined by gloo.

The function is one of a module's top level, because the ranks import it. What it returns comes
back by rank, and an error in a rank is an error here, with the message and the trace it had there.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

SECONDS = 120  # after which a collective that not all ranks take part in is an error


def run_on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """``function(rank, world_size, *args)`` on each of ``world_size`` ranks; results by rank.

    Each rank is a fresh process with one thread and the default process group initialised. It
    imports torch with the others where the system can fork (then 4 ranks take as long as one).
    Arguments and results travel by ``torch.save``.

    Raises:
        AssertionError: the function failed on a rank; what that rank said.
    """
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        context = _context()
        torch.save(args, Path(folder) / "args")
        ranks = [
            context.Process(target=_rank, args=(function, rank, world_size, folder), daemon=True)
            for rank in range(world_size)
        ]
        os.environ.update(dict.fromkeys(before, "1"))  # children take them when they start
        try:
            for process in ranks:
                process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        for process in ranks:
            process.join(2 * SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        _raise_what_failed(ranks, Path(folder))
        results = [Path(folder) / f"result{rank}" for rank in range(world_size)]
        return [torch.load(path, weights_only=False) for path in results]


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    return context


def _rank(function: Callable[..., Any], rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    stack = (Path(folder) / f"stack{rank}").open("w")
    faulthandler.dump_traceback_later(1.5 * SECONDS, exit=True, file=stack)
    try:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=SECONDS),
        )
        args = torch.load(Path(folder) / "args", weights_only=False)
        torch.save(function(rank, world_size, *args), Path(folder) / f"result{rank}")
        distributed.barrier()  # no rank leaves while another still talks to it
        distributed.destroy_process_group()
    except BaseException:
        partial = Path(folder) / f"writing{rank}"
        partial.write_text(traceback.format_exc())
        partial.rename(Path(folder) / f"error{rank}")
        os._exit(1)  # at once: the others notice a lost rank and need not wait for the timeout


def _raise_what_failed(ranks: list[Any], folder: Path) -> None:
    errors = {r: folder / f"error{r}" for r in range(len(ranks))}
    said = {r: path.read_text() for r, path in errors.items() if path.exists()}
    silent = {
        r: f"it ended with code {process.exitcode} {(folder / f'stack{r}').read_text()}"
        for r, process in enumerate(ranks)
        if process.exitcode != 0 and r not in said
    }
    # A rank that lost its peer says so; what the peer has to say is the cause.
    causes = {r: text for r, text in said.items() if not _is_of_a_lost_peer(text)}
    for rank, text in (causes or silent or said).items():
        raise AssertionError(f"rank {rank} of {len(ranks)} failed: {text}")


def _is_of_a_lost_peer(text: str) -> bool:
    last = text.strip().splitlines()[-1]
    return "gloo" in last and any(word in last for word in ("Connection", "peer", "Timed out"))
