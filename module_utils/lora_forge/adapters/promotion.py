"""Promotion: which of an agent's delivered adapters ``latest`` points to, and the history of that."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import IO, Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.agents import AGENTS
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.text import canonical, nearest
from ansible.module_utils.lora_forge.trainer import run_state

LATEST = "latest"
_HISTORY = "history.jsonl"
# Recipe keys that decide which tokens of an evaluation set count, and how they are laid out.
MASKING = ("chat_template", "chat_template_jinja", "train_on_inputs", "roles_to_train", "train_on_eos")
BY_HAND = "ansible-playbook playbooks/promote.yml -e role={agent} -e run_id={run_id}"


@dataclasses.dataclass(frozen=True)
class _Decision:
    """Whether ``latest`` moves to a candidate.

    Attributes:
        move: Whether it does.
        why: A sentence.
        comparable: Whether the two eval losses say anything of each other; None where that was not asked.
        eval_loss: The candidate's.
        than: The promoted one's.
    """

    move: bool
    why: str
    comparable: Optional[bool]
    eval_loss: Optional[float]
    than: Optional[float]


def evaluation(keys: dict[str, Any], datasets: list[dict[str, Any]], eval_loss: Any) -> dict[str, Any]:
    """What a run was evaluated on, and how that ended, for its manifest.

    Args:
        keys: The run's recipe.
        datasets: The run's files, with ``use`` and ``sha256``.
        eval_loss: The adapter's, as it was logged.

    Returns:
        source (``file``, ``split`` of the training data, or ``none``), sha256 (equal for equal evaluation sets that are
        laid out and masked alike; None without one), sequence_len (tokens), base_model (its tokenizer makes the
        tokens) and eval_loss (None when it is not finite).
    """
    sums = {use: sorted(one["sha256"] for one in datasets if one["use"] == use) for use in ("train", "val")}
    share = keys.get("val_set_size", 0)
    basis: Any = None
    if sums["val"]:
        source, basis = "file", sums["val"]
    elif share:
        # Axolotl draws the split by the seed.
        source, basis = "split", {"train": sums["train"], "val_set_size": share, "seed": keys.get("seed")}
    else:
        source = "none"
    masked = {key: keys[key] for key in MASKING if key in keys}
    return {
        "source": source,
        "sha256": hashlib.sha256(canonical([basis, masked]).encode()).hexdigest() if basis else None,
        "sequence_len": keys.get("sequence_len"),
        "base_model": keys.get("base_model"),
        "eval_loss": eval_loss if run_state.finite(eval_loss) else None,
    }


def evaluation_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The evaluation in a manifest; computed from its recipe and datasets where it is older than that entry."""
    loss = store.adapter_loss(manifest)
    try:
        found = evaluation(manifest.get("recipe", {}), manifest.get("datasets", []), loss)
        return found | {key: value for key, value in (manifest.get("evaluation") or {}).items() if key in found}
    except (KeyError, TypeError, AttributeError):  # damaged
        return evaluation({}, [], loss)


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Why the eval losses of two evaluations say nothing of each other; empty when they do."""
    if ours["sha256"] is None or theirs["sha256"] is None:
        return "one of them has no evaluation set"
    if ours["sha256"] != theirs["sha256"]:
        return "another evaluation set"
    if ours["base_model"] != theirs["base_model"]:
        return f"base model {ours['base_model']} instead of {theirs['base_model']}"
    if ours["sequence_len"] != theirs["sequence_len"]:
        return f"sequence_len {ours['sequence_len']} instead of {theirs['sequence_len']}"
    if ours["eval_loss"] is None or theirs["eval_loss"] is None:
        return "one of them has no finite eval loss"
    return ""


def compared(loss: float, than: float, name: str) -> str:
    """Two eval losses in words, as «eval 0.912 is 3.4 % worse than witness-1's 0.882»."""
    share = 100 * (loss - than) / (abs(than) or 1)
    far = f"{abs(share):.3g} % {'worse' if share > 0 else 'better'} than" if share else "as good as"
    return f"eval {loss:.4g} is {far} {name}'s {than:.4g}"


def decide(
    candidate: dict[str, Any], promoted: Optional[dict[str, Any]], real_exists: bool, max_regression: float
) -> _Decision:
    """Whether ``latest`` moves to a verified, delivered run after its training.

    Args:
        candidate: Its manifest.
        promoted: The manifest of the one that is promoted; None without one.
        real_exists: Whether the agent has an adapter that is no rehearsal.
        max_regression: By which share the candidate's eval loss may be above the promoted one's.
    """
    ours = evaluation_of(candidate)
    theirs: dict[str, Any] = evaluation_of(promoted) if promoted else {"eval_loss": None}

    def decision(move: bool, why: str, comparable: Optional[bool] = None) -> _Decision:
        return _Decision(move, why, comparable, ours["eval_loss"], theirs["eval_loss"])

    if is_rehearsal(candidate) and (real_exists or (promoted and not is_rehearsal(promoted))):
        return decision(False, "a rehearsal never displaces a real adapter")
    loss = store.adapter_loss(candidate)
    if loss is not None and not run_state.finite(loss):
        return decision(False, f"its eval loss is {loss}", False)
    if promoted is None:
        return decision(True, "nothing was promoted")
    if is_rehearsal(promoted):
        return decision(True, "a rehearsal always makes way")
    name = promoted["run_id"]
    apart = difference(ours, theirs)
    if apart:
        return decision(True, f"not comparable with {name} ({apart})", False)
    words = compared(ours["eval_loss"], theirs["eval_loss"], name)
    if ours["eval_loss"] - theirs["eval_loss"] > max_regression * abs(theirs["eval_loss"]):
        return decision(False, f"{words} (adapter_max_regression {100 * max_regression:.3g} %)", True)
    return decision(True, words, True)


def home_of(adapters: pathlib.Path, agent: str) -> pathlib.Path:
    """The folder of an agent's adapters.

    Args:
        adapters: output/adapters.
        agent: As a user named it.

    Raises:
        UserError: Nobody is named, or there is no such agent.
    """
    if agent not in AGENTS:
        known = f"Agents: {', '.join(AGENTS)}"
        if not agent:
            raise UserError(f"say whose adapter to promote: -e role=witness. {known}")
        raise UserError(f"there is no agent «{agent}»{nearest(agent, AGENTS) or '.'} {known}")
    return adapters / agent


def is_rehearsal(manifest: dict[str, Any]) -> bool:
    return bool(manifest.get("rehearsal", True))


def delivered_manifests(home: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The manifests of an agent's delivered adapters, whole or damaged, by run id; the oldest first.

    Args:
        home: output/adapters/<agent>.
    """
    folders = [path for path in home.glob("[!.]*") if path.is_dir() and not path.is_symlink()]
    found = {path.name: store.read_manifest(path) for path in folders}
    whole = {name: manifest for name, manifest in found.items() if manifest.get("verdict") == "verified"}
    return dict(sorted(whole.items(), key=lambda item: (item[1].get("finished_at") or 0, item[0])))


def current_manifest(home: pathlib.Path) -> Optional[dict[str, Any]]:
    """The manifest of the adapter that ``latest`` points to; None when it leads nowhere, or to a damaged one."""
    folder = (home / LATEST).resolve()
    if not (home / LATEST).is_symlink() or folder.parent != home.resolve() or store.integrity_error(folder):
        return None
    return store.read_manifest(folder) | {"run_id": folder.name}


def history(home: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of an agent's history.jsonl, the oldest first; one that a crash cut off is passed over.

    Each has at (epoch seconds), run_id, from (the run that held ``latest``, or None), moved, by (``training``,
    ``hand``, or ``unknown``: it was found so), why, comparable, eval_loss and than (the eval loss of ``from``).
    """
    return [line for line in rundir.read_events(home / _HISTORY)[0] if "run_id" in line and "moved" in line]


def promote(home: pathlib.Path, run_id: str, max_regression: float, asked: bool = False, check: bool = False) -> bool:
    """Let ``latest`` point to a run that a training has just delivered, where the gate lets it.

    A run is decided on once: collected again, it finds its line in the history, and an older one never takes
    ``latest`` back. Only where ``latest`` leads nowhere is a run decided on again.

    Args:
        home: output/adapters/<agent>.
        run_id: A delivered run.
        max_regression: See :func:`decide`.
        asked: Somebody wants it looked at, so that it is decided on again; held against the same one, it is noted once.
        check: Change nothing.

    Returns:
        Whether ``latest`` moves.

    Raises:
        UserError: The share makes no sense, or ``latest`` is no symbolic link.
    """
    if not max_regression >= 0:
        raise UserError(f"adapter_max_regression is «{max_regression}»; give a share from 0 on, such as 0.02")
    if check:
        return _gate(home, current_manifest(home), run_id, max_regression, asked).move
    with _locked(home) as book:
        holder = _entered(home, book)
        decision = _gate(home, holder, run_id, max_regression, asked)
        if decision.why:
            _move(home, book, run_id, holder["run_id"] if holder else None, decision, "training")
        return decision.move


def _gate(
    home: pathlib.Path, holder: Optional[dict[str, Any]], run_id: str, max_regression: float, asked: bool
) -> _Decision:
    """The decision on a run, see :func:`promote`; without a reason where there is nothing new to say of it."""
    nothing = _Decision(False, "", None, None, None)
    before, lines = holder["run_id"] if holder else None, history(home)
    if before == run_id:
        return nothing
    if before and not asked and any(run_id in (line["run_id"], line.get("from")) for line in lines):
        return nothing
    manifests = delivered_manifests(home)
    real = any(not is_rehearsal(manifest) for manifest in manifests.values())
    decision = decide(manifests[run_id], holder, real, max_regression)
    noted = any((line["run_id"], line.get("from"), line["moved"]) == (run_id, before, False) for line in lines)
    return nothing if before and noted and not decision.move else decision


def promote_by_hand(home: pathlib.Path, run_id: str, check: bool = False) -> bool:
    """Let ``latest`` point to a run because somebody says so; the gate is told of, and overridden.

    Args:
        home: output/adapters/<agent>.
        run_id: A delivered run.
        check: Change nothing.

    Returns:
        Whether ``latest`` moves.

    Raises:
        UserError: There is no such adapter, it is damaged, or a rehearsal would displace a real adapter.
    """
    agent, manifests = home.name, delivered_manifests(home)
    if run_id not in manifests:
        there = f"Delivered: {', '.join(manifests)}" if manifests else "Nothing is delivered yet"
        hint = nearest(run_id, manifests) or "."
        raise UserError(f"{agent} has no adapter «{run_id}» in {home}{hint} {there}")
    flaw = store.integrity_error(home / run_id, hashes=True)
    if flaw:
        raise UserError(f"{run_id} is not whole: {flaw}. The training that made it, run again, delivers it again")
    real = [name for name, manifest in manifests.items() if not is_rehearsal(manifest)]
    if is_rehearsal(manifests[run_id]) and real:
        raise UserError(
            f"{run_id} is a rehearsal, with a tiny random model, and {agent} has a real adapter ({real[-1]}); "
            "a rehearsal never displaces one"
        )
    _movable(home, run_id)
    holder = current_manifest(home)
    if holder and holder["run_id"] == run_id:
        return False
    if check:
        return True
    with _locked(home) as book:
        holder = _entered(home, book)
        decision = decide(manifests[run_id], holder, bool(real), float("inf"))
        decision = dataclasses.replace(decision, move=True, why=f"by hand; {decision.why}")
        _move(home, book, run_id, holder["run_id"] if holder else None, decision, "hand")
    return True


def overview(home: pathlib.Path) -> list[dict[str, Any]]:
    """What may be promoted of an agent, the newest first.

    Args:
        home: output/adapters/<agent>.

    Returns:
        A list of {run_id, rehearsal, eval_loss, steps, finished_at, promoted, comparable, flaw}: comparable says in
        words whether the eval loss can be held against the promoted one's, flaw what is wrong with the files.
    """
    holder = current_manifest(home)
    rows = []
    for run_id, manifest in reversed(delivered_manifests(home).items()):
        ours = evaluation_of(manifest)
        if holder is None or holder["run_id"] == run_id:
            comparable = ""
        elif is_rehearsal(holder) != is_rehearsal(manifest):
            comparable = "no: one of them is a rehearsal"
        else:
            apart = difference(ours, evaluation_of(holder))
            comparable = f"no: {apart}" if apart else "yes"
        rows.append(
            {
                "run_id": run_id,
                "rehearsal": is_rehearsal(manifest),
                "eval_loss": ours["eval_loss"],
                "steps": manifest.get("steps"),
                "finished_at": manifest.get("finished_at"),
                "promoted": bool(holder and holder["run_id"] == run_id),
                "comparable": comparable,
                "flaw": store.integrity_error(home / run_id),
            }
        )
    return rows


def message(home: pathlib.Path, run_id: str) -> str:
    """What became of ``latest`` after a run, for people; empty when it points there and nothing is to be added.

    Args:
        home: output/adapters/<agent>.
        run_id: A delivered run.
    """
    line: dict[str, Any] = next((line for line in reversed(history(home)) if line["run_id"] == run_id), {})
    target = points_to(home / LATEST)
    why = str(line.get("why", ""))
    if target == run_id:
        return why if line.get("comparable") is False else ""
    stays = f"latest stays at {target}" if target else "latest points to nothing"
    if line and not line["moved"] and line.get("from") in (target, None):
        stays += ": " + why.replace(f"{target}'s", "its")
    if is_rehearsal(rundir.read_json(home / run_id / store.MANIFEST)):
        return stays
    return f"{stays}. By hand: {BY_HAND.format(agent=home.name, run_id=run_id)}"


@contextlib.contextmanager
def _locked(home: pathlib.Path) -> Iterator[IO[bytes]]:
    """The history, open for appending, and for nobody else: two hosts may deliver runs of one agent at a time."""
    with rundir.locked(home / _HISTORY), (home / _HISTORY).open("a+b") as book:
        yield book


def _entered(home: pathlib.Path, book: IO[bytes]) -> Optional[dict[str, Any]]:
    """The promoted one, which has a line in the history from now on.

    It may have none: see :func:`_move`; or an earlier version moved ``latest``, or somebody with ``ln``.
    """
    holder, lines = current_manifest(home), history(home)
    if holder and not any(holder["run_id"] in (line["run_id"], line.get("from")) for line in lines):
        before = next((line["run_id"] for line in reversed(lines) if line["moved"]), None)
        loss = evaluation_of(holder)["eval_loss"]
        found = _Decision(True, "latest was found there; nobody had noted it", None, loss, None)
        _note(book, holder["run_id"], before, found, "unknown")
    return holder


def _move(
    home: pathlib.Path, book: IO[bytes], run_id: str, before: Optional[str], decision: _Decision, by: str
) -> None:
    """Carry a decision out, and note it.

    The link comes first, as it is what counts. A crash before the line leaves a promoted run without one, and the next
    call adds that (:func:`_entered`). The other way round, the history would tell of a move that never was.
    """
    if decision.move:
        link = _movable(home, run_id)
        fresh = home / f".{LATEST}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(run_id)
        os.replace(fresh, link)
    _note(book, run_id, before, decision, by)


def _movable(home: pathlib.Path, run_id: str) -> pathlib.Path:
    link = home / LATEST
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is no symbolic link, so it cannot be moved to {run_id}; put it elsewhere")
    return link


def _note(book: IO[bytes], run_id: str, before: Optional[str], decision: _Decision, by: str) -> None:
    """Add a line to the history. One that a crash cut off is ended first: it must not take this one with it."""
    record = {
        "at": round(time.time(), 3),
        "run_id": run_id,
        "from": before,
        "moved": decision.move,
        "by": by,
        "why": decision.why,
        "comparable": decision.comparable,
        "eval_loss": decision.eval_loss,
        "than": decision.than,
    }
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    if book.seek(0, os.SEEK_END):
        book.seek(-1, os.SEEK_END)
        line = line if book.read(1) == b"\n" else b"\n" + line
    book.write(line)
    book.flush()
    os.fsync(book.fileno())


def points_to(link: pathlib.Path) -> str:
    """Where a symbolic link leads; empty when it is none."""
    return os.readlink(link) if link.is_symlink() else ""
