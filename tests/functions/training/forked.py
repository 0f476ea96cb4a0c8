"""Workers of one machine as forks of one process, which has imported everything once; each has its rank and gloo."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed


def on_workers(count: int, folder: Path, work: Callable[[int], object]) -> list[int | None]:
    """Run `work(rank)` in so many processes; what it returns lies in `folder` as {rank}.json. Gives the exit codes."""
    torch.set_num_threads(1)
    meeting = folder / f"group-{len(list(folder.iterdir()))}"
    forks = [
        multiprocessing.get_context("fork").Process(target=_one, args=(rank, count, meeting, work))
        for rank in range(count)
    ]
    for fork in forks:
        fork.start()
    for fork in forks:
        fork.join()
    return [fork.exitcode for fork in forks]


def answers(folder: Path) -> list[dict[str, object]]:
    """What the workers returned, by rank."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def join_group(rank: int, count: int, meeting: Path) -> None:
    """Become one of `count` workers that meet in a file."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)


def _one(rank: int, count: int, meeting: Path, work: Callable[[int], object]) -> None:
    join_group(rank, count, meeting)
    (meeting.parent / f"{rank}.json").write_text(json.dumps(work(rank)))
    torch.distributed.destroy_process_group()
