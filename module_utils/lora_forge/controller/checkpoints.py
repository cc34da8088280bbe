"""Bringing a run's checkpoints to the controller, so that a trainer that is lost loses nothing; and on to another one.

What one trainer wrote is loaded by the next. So only files go that a training resumes from without running what is in
them (:mod:`paths` names them), and the list that says what a checkpoint consists of is written anew here.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from functools import partial
from typing import Any

from ansible.module_utils.lora_forge import paths, rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.controller.actions import ForgeAction
from ansible.module_utils.lora_forge.controller.display import show, tell
from ansible.module_utils.lora_forge.controller.transfer import remove
from ansible.module_utils.lora_forge.errors import UserError, error_message
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.turns import run_files
from ansible.module_utils.lora_forge.trainer import pruning, saved

INCOMING = "incoming"  # in the run's folder: what is on its way, and was not looked at yet
METRICS = "metrics.jsonl"
_LIST = paths.MIB  # bytes of complete.json
_DIGESTS = "sha256"  # in the complete.json of a checkpoint that is kept here: of each file
_TINY = 2 * paths.GIB  # bytes of a rehearsal's checkpoint, far more than it has
_PATIENCE = 600.0  # seconds for another command that fetches the same: whoever waits does not look at costs
_MARGIN = paths.GIB  # what is beside weights and optimizer, which are in the GPU's memory, too


def wanted_files(checkpoint: dict[str, Any]) -> dict[str, int]:
    """Choose what is fetched of a checkpoint: what a training resumes from, and the list of its files.

    Args:
        checkpoint: As the trainer named it: its ``step``, and its ``files`` below the run directory.

    Returns:
        The most bytes of each file, by its path below the run directory.

    Raises:
        UserError: It is no checkpoint that can be taken to another trainer.
    """
    step, listed = checkpoint.get("step"), checkpoint.get("files")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 < step < 10**9 or not isinstance(listed, list):
        raise UserError(f"its trainer names no checkpoint: {paths.quoted(checkpoint)}")
    folder, wanted = f"output/checkpoint-{step}", {}
    for path in listed:
        why = paths.flaw(path) or (None if path.startswith(f"{folder}/") else f"is not in {folder}")
        if why:
            raise UserError(f"its trainer names {paths.quoted(path)}, which {why}; nothing of it is taken")
        name = path[len(folder) + 1 :]
        limit = paths.checkpoint_limit(name)
        if limit is not None:
            wanted[path] = limit
        elif paths.is_sharded(name):
            raise UserError(
                "it is in parts, as FSDP and DeepSpeed write it: some are pickles that may run code where they are "
                "read, so it stays on its trainer, and the run goes on there alone"
            )
    lacking = [name for name in paths.CHECKPOINT_NEEDS if f"{folder}/{name}" not in wanted]
    if lacking:
        raise UserError(f"it has no {' and no '.join(lacking)}, so that nothing could go on from it")
    return wanted | {f"{folder}/{rundir.COMPLETE}": _LIST, METRICS: paths.ADAPTER[METRICS]}


def most_bytes(run: PlannedRun, wanted: dict[str, int]) -> int:
    """Tell how much a checkpoint of a run can come to: its weights and its optimizer are in the GPU's memory, too.

    Args:
        run: The planned run.
        wanted: From :func:`wanted_files`.
    """
    if run.rehearsal:
        return _TINY
    memory = run.estimate.memory_gib
    return min(sum(wanted.values()), int(memory * paths.GIB) + _MARGIN if memory else sum(wanted.values()))


def fetch_checkpoint(
    action: ForgeAction,
    run: PlannedRun,
    checkpoint: dict[str, Any],
    run_dir: str,
    kept: pathlib.Path,
    transfer: dict[str, Any],
) -> bool:
    """Fetch a whole checkpoint, and drop the ones before it. One that is cut off is not whole: nothing resumes from it.

    Args:
        action: Who fetches.
        run: Whose it is.
        checkpoint: Its ``step``, and its ``files`` below the run directory, as the trainer names them.
        run_dir: The run directory on the trainer.
        kept: output/runs/<run_id> on the controller, laid out as a run directory.
        transfer: How files come over: ``timeout`` and ``options`` of the action transfer.

    Returns:
        Whether it is here; that it is not is a warning.
    """
    incoming, reason = kept / INCOMING, ""
    try:
        wanted = wanted_files(checkpoint)
        files = [{"path": path, "bytes": limit} for path, limit in wanted.items()]
        asked = {"from": run_dir, "files": files, "to": str(incoming), "max_bytes": most_bytes(run, wanted), **transfer}
        with run_files(kept.parents[1], run.run_id, partial(tell, host=action.host), _PATIENCE):
            if newest_whole(kept) >= checkpoint["step"]:  # another command has fetched it
                return True
            answer = action.run_action("transfer", asked)
            if answer.get("failed"):
                reason = str(answer.get("msg") or "it failed")
            else:
                take_over(incoming, kept, checkpoint["step"], set(wanted))
                rows, _ = pruning.prune_plan(kept, keep=0)
                for path in [row["path"] for row in rows if not row["keep"]]:
                    shutil.rmtree(path, ignore_errors=True)
    except (UserError, OSError) as error:
        reason = error_message(error)
    except Exception as error:  # whatever it is, no training fails by it
        reason = str(error)
    if reason:
        step = checkpoint.get("step")
        told = f"checkpoint {step} was not fetched; the next one is tried again ({reason.splitlines()[0]})"
        show(warnings=[told])
        return False
    show(lines=[f"  {run.agent}  checkpoint {checkpoint['step']} is on the controller"], host=action.host)
    return True


def take_over(incoming: pathlib.Path, kept: pathlib.Path, step: int, wanted: set[str]) -> None:
    """Look at a checkpoint that has arrived, and put it where it is kept, with a list of its files of our own.

    Args:
        incoming: Where it arrived, laid out as a run directory.
        kept: Where it is kept.
        step: Its step.
        wanted: What was asked for, below the run directory.

    Raises:
        UserError: It is not what its trainer's list says, or nothing that may be loaded.
    """
    checkpoint = incoming / f"output/checkpoint-{step}"
    strange = paths.strangers(incoming, wanted)
    if strange:
        raise UserError(f"{paths.quoted(strange[0])} came with it, which nobody asked for")
    listed = rundir.read_json(checkpoint / rundir.COMPLETE, _LIST).get("files")
    sizes = listed if isinstance(listed, dict) else {}
    for path in sorted(wanted - {METRICS, f"output/checkpoint-{step}/{rundir.COMPLETE}"}):
        name = path.rpartition("/")[2]
        if not (incoming / path).is_file() or sizes.get(name) != (incoming / path).stat().st_size:
            raise UserError(f"{name} is not as its trainer's list of the checkpoint says")
    config = rundir.read_json(checkpoint / "adapter_config.json")
    problems = [*filter(None, [saved.weights_defect(checkpoint / store.WEIGHTS)]), *store.import_problems(config)]
    if problems:
        raise UserError(problems[0])
    (checkpoint / rundir.COMPLETE).unlink()
    mark_kept(checkpoint, step)
    final = kept / f"output/checkpoint-{step}"
    final.parent.mkdir(parents=True, exist_ok=True)
    remove(final)
    checkpoint.rename(final)
    if (incoming / METRICS).is_file():
        events, _ = rundir.read_events(incoming / METRICS)
        lines = "".join(json.dumps(event) + "\n" for event in events)
        rundir.write_bytes(kept / METRICS, lines.encode(), 0o600)
    shutil.rmtree(incoming)


def mark_kept(checkpoint: pathlib.Path, step: int) -> None:
    """Write the list of a checkpoint's files, their sizes and digests, by which damage is known later.

    Args:
        checkpoint: Its folder.
        step: Its step.
    """
    rundir.mark_complete(checkpoint, step)
    listed = rundir.read_json(checkpoint / rundir.COMPLETE)
    digests = {name: store.sha256_file(checkpoint / name) for name in listed["files"]}
    rundir.write_json(checkpoint / rundir.COMPLETE, {**listed, _DIGESTS: digests})


def newest_whole(kept: pathlib.Path, check: bool = False) -> int:
    """Return the step of the newest checkpoint that is here as it came, 0 without one. Newer ones are deleted.

    A disk may damage what it keeps. The trainer would set such a checkpoint aside, and have none before it.

    Args:
        kept: Where checkpoints are kept, laid out as a run directory.
        check: Whether nothing is deleted.
    """
    if paths.through_link(kept, "output"):
        return 0
    for step, folder in reversed([*rundir.checkpoints(kept / "output")]):
        if folder.is_symlink():
            continue
        if not (rundir.defect(folder) or saved.weights_defect(folder / store.WEIGHTS) or is_altered(folder)):
            return step
        if not check:
            remove(folder)
    return 0


def is_altered(checkpoint: pathlib.Path) -> bool:
    """Tell whether a file of a checkpoint is not what it was; what an earlier version fetched has no digests."""
    digests = rundir.read_json(checkpoint / rundir.COMPLETE, _LIST).get(_DIGESTS)
    if not isinstance(digests, dict):
        return False
    names = filter(lambda name: not paths.flaw(name) and (checkpoint / name).is_file(), digests)
    return any(store.sha256_file(checkpoint / name) != digests[name] for name in names)


def carried_files(kept: pathlib.Path, check: bool = False) -> tuple[int, list[str]]:
    """List what goes to the next trainer of the newest checkpoint that is kept, and is whole.

    What an earlier version fetched may hold other files beside those, or in their places; they are deleted.

    Args:
        kept: Where checkpoints are kept, laid out as a run directory.
        check: Whether nothing is deleted.

    Returns:
        Its step, 0 without one, and its files below the run directory.
    """
    step = newest_whole(kept, check)
    if not step:
        return 0, []
    folder = kept / f"output/checkpoint-{step}"
    names = {name for name in os.listdir(folder) if paths.checkpoint_limit(name) is not None}
    if not check:
        strange = paths.strangers(folder, names | {rundir.COMPLETE})
        for name in strange:
            remove(folder / name)
        if strange or set(rundir.read_json(folder / rundir.COMPLETE).get("files", {})) != names:
            mark_kept(folder, step)
    has_metrics = (kept / METRICS).is_file() and not (kept / METRICS).is_symlink()
    files = [f"output/checkpoint-{step}/{name}" for name in (*sorted(names), rundir.COMPLETE)]
    return step, [*files, *([METRICS] if has_metrics else [])]
