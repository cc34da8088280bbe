"""Promotion: which of an agent's delivered adapters ``latest`` points to, and the history of that."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.manifest import Dataset, Evaluation, Manifest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation.scores import Score
from ansible.module_utils.lora_forge.planned_run import PlannedDataset
from ansible.module_utils.lora_forge.text import canonical, nearest, shown
from ansible.module_utils.lora_forge.trainer import run_state

LATEST = "latest"
COLUMNS = ["run", "score", "n", "95 %", "eval loss", "steps", "when", "promoted", "comparable"]
NOTHING = "–"
_HISTORY = "history.jsonl"
# Recipe keys that decide which tokens of an evaluation set count, and how they are laid out.
MASKING = ("chat_template", "chat_template_jinja", "train_on_inputs", "roles_to_train", "train_on_eos")
BY = ("score", "loss", "human")
UNKNOWN = ("keep", "move")
HUMAN = "adapter_promote is human: somebody decides"
BY_HAND = "ansible-playbook playbooks/promote.yml -e role={agent} -e run_id={run_id}"


@dataclasses.dataclass(frozen=True)
class Gate:
    """How it is decided whether ``latest`` moves after a training.

    Attributes:
        by: ``score`` goes by the agent's cases, and by the eval loss where they cannot tell or there are none; ``loss``
            by that alone; ``human`` moves nothing.
        max_regression: By which share the candidate's eval loss may be above the promoted one's.
        unknown: What happens to one of which nothing says whether it is better or worse: ``keep`` leaves ``latest``
            where it is, ``move`` moves it.
    """

    by: str = "score"
    max_regression: float = 0.02
    unknown: str = "keep"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Gate:
        """Read it from the options of a module."""
        return cls(given["promote_by"], given["max_regression"], given["promote_unknown"])

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UserError: With the name of the option.
        """
        if not self.max_regression >= 0:
            raise UserError(f"adapter_max_regression is «{self.max_regression}»; give a share from 0 on, such as 0.02")
        for name, value, known in (
            ("adapter_promote", self.by, BY),
            ("adapter_promote_unknown", self.unknown, UNKNOWN),
        ):
            if value not in known:
                raise UserError(f"{name} is «{shown(str(value), 40)}»; known: {', '.join(known)}")


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


def evaluation(keys: dict[str, Any], datasets: Sequence[PlannedDataset | Dataset], eval_loss: Any) -> Evaluation:
    """Describe what a run was evaluated on, and how that ended, for its manifest.

    Args:
        keys: The run's recipe.
        datasets: The run's files.
        eval_loss: The adapter's, as it was logged.

    Returns:
        source (``file``, ``split`` of the training data, or ``none``), sha256 (equal for equal evaluation sets that are
        laid out and masked alike; None without one), sequence_len (tokens), base_model (its tokenizer makes the
        tokens) and eval_loss (None when it is not finite).
    """
    sums = {use: sorted(str(file.sha256) for file in datasets if file.use == use) for use in ("train", "val")}
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
    return Evaluation(
        source=source,
        sha256=hashlib.sha256(canonical([basis, masked]).encode(errors="surrogatepass")).hexdigest() if basis else None,
        sequence_len=keys.get("sequence_len"),
        base_model=keys.get("base_model"),
        eval_loss=eval_loss if run_state.finite(eval_loss) else None,
    )


def evaluation_of(manifest: Manifest) -> Evaluation:
    """Return the evaluation in a manifest; what it does not say is computed from its recipe and datasets."""
    if all(file.use and file.sha256 for file in manifest.datasets):
        computed = evaluation(manifest.recipe, manifest.datasets, manifest.adapter_loss)
    else:  # damaged
        computed = evaluation({}, (), manifest.adapter_loss)
    noted = {key: value for key, value in vars(manifest.evaluation).items() if value is not None}
    return dataclasses.replace(computed, **noted)


def difference(ours: Evaluation, theirs: Evaluation) -> str:
    """Tell why the eval losses of two evaluations say nothing of each other; empty when they do."""
    if ours.sha256 is None or theirs.sha256 is None:
        return "one of them has no evaluation set"
    if ours.sha256 != theirs.sha256:
        return "another evaluation set"
    if ours.base_model != theirs.base_model:
        return f"base model {ours.base_model} instead of {theirs.base_model}"
    if ours.sequence_len != theirs.sequence_len:
        return f"sequence_len {ours.sequence_len} instead of {theirs.sequence_len}"
    if ours.eval_loss is None or theirs.eval_loss is None:
        return "one of them has no finite eval loss"
    return ""


def compared(loss: float, than: float, name: str) -> str:
    """Compare two eval losses in words, as «eval 0.912 is 3.4 % worse than witness-1's 0.882»."""
    share = 100 * (loss - than) / (abs(than) or 1)
    far = f"{abs(share):.3g} % {'worse' if share > 0 else 'better'} than" if share else "as good as"
    return f"eval {loss:.4g} is {far} {name}'s {than:.4g}"


def decide(candidate: Manifest, promoted: Optional[Manifest], real_exists: bool, gate: Gate) -> _Decision:
    """Decide whether ``latest`` moves to a verified, delivered run after its training.

    Args:
        candidate: Its manifest.
        promoted: The manifest of the one that is promoted; None without one.
        real_exists: Whether the agent has an adapter that is no rehearsal.
        gate: How it is decided.
    """
    ours = evaluation_of(candidate)
    theirs = evaluation_of(promoted) if promoted else Evaluation()
    merit = candidate.merit if candidate.merit and candidate.merit.decides else None

    def decision(move: bool, why: str, comparable: Optional[bool] = None) -> _Decision:
        return _Decision(move, why, comparable, ours.eval_loss, theirs.eval_loss)

    if candidate.is_rehearsal and (real_exists or (promoted and not promoted.is_rehearsal)):
        return decision(False, "a rehearsal never displaces a real adapter")
    loss = candidate.adapter_loss
    if loss is not None and not run_state.finite(loss):
        return decision(False, f"its eval loss is {loss}", False)
    if gate.by == "human":
        return decision(False, HUMAN)
    if gate.by == "score" and candidate.merit and candidate.merit.broken:  # whatever else it has not answered
        return decision(False, f"it does what is forbidden in {_named(candidate.merit.broken)}")
    lost = merit.unloadable if gate.by == "score" and merit and promoted and merit.against == promoted.run_id else ""
    if promoted is None or promoted.is_rehearsal or lost:
        if gate.by == "score" and merit and merit.over_base.verdict == "worse" and not candidate.is_rehearsal:
            return decision(False, f"it does worse than its base model: {scored(merit.score, merit.base)}")
        if promoted is not None and lost:  # nobody can serve it either
            return decision(True, f"{promoted.run_id} is no rival: {lost}")
        return decision(True, "nothing was promoted before" if promoted is None else "a rehearsal always makes way")
    said = ""
    if gate.by == "score" and merit and merit.against == promoted.run_id and merit.over_promoted.cases:
        over = merit.over_promoted
        said = f"{scored(merit.score, merit.than)} of {promoted.run_id}"
        if over.verdict == "better":
            return decision(True, f"better on its cases: {said}", True)
        if over.verdict == "worse":
            return decision(False, f"worse on its cases: {said}; lost: {_named(over.lost)}", True)
        said = f"cannot tell with {over.cases} cases ({said}; about {over.needed} would tell 10 points). "
    incomparable = difference(ours, theirs)
    if ours.eval_loss is None or theirs.eval_loss is None or incomparable:
        if said:
            why = f"{said}The losses cannot be compared: {incomparable}"
            # Whoever wants the newer one where nothing speaks against it has cases that speak against this one.
            return decision(gate.unknown == "move" and len(over.lost) <= len(over.gained), why, False)
        why = f"not comparable with {promoted.run_id} ({incomparable})"
        if gate.unknown == "move":
            return decision(True, why, False)
        return decision(False, f"{why}. {_advice(candidate, promoted, gate)}", False)
    comparison = said + compared(ours.eval_loss, theirs.eval_loss, str(promoted.run_id))
    if ours.eval_loss - theirs.eval_loss > gate.max_regression * abs(theirs.eval_loss):
        return decision(False, f"{comparison} (adapter_max_regression {100 * gate.max_regression:.3g} %)", True)
    return decision(True, comparison, True)


_COMPARABLE = (
    "Cases in eval/<agent>.jsonl compare any two, and a <agent>_val.jsonl of their own those of other data; "
    "-e adapter_promote_unknown=move lets it pass"
)
_ASKS = "playbooks/evaluate.yml -e run_id={} asks it"
_LONGEST_LIST = 3


def _advice(candidate: Manifest, promoted: Manifest, gate: Gate) -> str:
    """Say how the two could be compared."""
    merit = candidate.merit
    if gate.by == "score" and merit and merit.unanswered:
        return f"It has not answered {merit.unanswered} of {merit.cases} cases: {_ASKS.format(candidate.run_id)}"
    if gate.by == "score" and merit and merit.against == promoted.run_id and not merit.than.cases:
        return f"{promoted.run_id} has not answered these cases: {_ASKS.format(promoted.run_id)}"
    return _COMPARABLE


def _named(names: Sequence[str]) -> str:
    """Name some cases."""
    more = len(names) - _LONGEST_LIST
    return ", ".join(f"«{name}»" for name in names[:_LONGEST_LIST]) + (f" and {more} more" if more > 0 else "")


def scored(ours: Score, theirs: Score) -> str:
    """Show two scores, as «17 of 20 against 12 of 20»."""
    return f"{ours.right} of {ours.cases} against {theirs.right} of {theirs.cases}"


def delivered_manifests(home: pathlib.Path) -> dict[str, Manifest]:
    """Read the manifests of an agent's delivered adapters, whole or damaged, by run id; the oldest first.

    Args:
        home: output/adapters/<agent>.
    """
    folders = [path for path in home.glob("[!.]*") if path.is_dir() and not path.is_symlink()]
    manifests = {path.name: manifest for path in folders if (manifest := store.read_manifest(path))}
    verified = [(name, manifest) for name, manifest in manifests.items() if manifest.verdict == "verified"]
    return dict(sorted(verified, key=lambda item: (item[1].finished_at or 0, item[0])))


def current_manifest(home: pathlib.Path) -> Optional[Manifest]:
    """Read the manifest of the adapter that ``latest`` points to; None when it leads nowhere, or to a damaged one."""
    folder = (home / LATEST).resolve()
    if not (home / LATEST).is_symlink() or folder.parent != home.resolve() or store.integrity_error(folder):
        return None
    return dataclasses.replace(store.read_manifest(folder) or Manifest(), run_id=folder.name)


def history(home: pathlib.Path) -> list[dict[str, Any]]:
    """Read the lines of an agent's history.jsonl, the oldest first; one that a crash cut off is passed over.

    Each has at (epoch seconds), run_id, from (the run that held ``latest``, or None), moved, by (``training``,
    ``hand``, or ``unknown``: it was found so), why, comparable, eval_loss and than (the eval loss of ``from``).
    """
    return [line for line in rundir.read_lines(home / _HISTORY)[0] if "run_id" in line and "moved" in line]


def promote(home: pathlib.Path, run_id: str, gate: Gate, asked: bool = False, check: bool = False) -> bool:
    """Let ``latest`` point to a run that a training has just delivered, where the gate lets it.

    A run is decided on once: collected again, it finds its line in the history, and an older one never takes
    ``latest`` back. Only where ``latest`` leads nowhere is a run decided on again.

    Args:
        home: output/adapters/<agent>.
        run_id: A delivered run.
        gate: How it is decided.
        asked: Somebody wants it looked at, so that it is decided on again; held against the same one, it is noted once.
        check: Change nothing.

    Returns:
        Whether ``latest`` moves.

    Raises:
        UserError: The gate makes no sense, the run has no whole adapter, or ``latest`` is no symbolic link.
    """
    gate.check()
    if check:
        return _decided(home, current_manifest(home), run_id, gate, asked).move
    with _locked(home) as book:
        holder = _noted_holder(home, book)
        decision = _decided(home, holder, run_id, gate, asked)
        if decision.why:
            _move(home, book, run_id, holder.run_id if holder else None, decision, "training")
        return decision.move


def is_decided(home: pathlib.Path, run_id: str) -> bool:
    """Tell whether the gate, or somebody, has decided on a run, and ``latest`` leads somewhere.

    Args:
        home: output/adapters/<agent>.
        run_id: A delivered run.
    """
    return current_manifest(home) is not None and _is_known(history(home), run_id)


def _is_known(lines: Sequence[Mapping[str, Any]], run_id: str) -> bool:
    return any(run_id in (line["run_id"], line.get("from")) for line in lines)


def _decided(home: pathlib.Path, holder: Optional[Manifest], run_id: str, gate: Gate, asked: bool) -> _Decision:
    """Decide on a run, see :func:`promote`; without a reason where there is nothing new to say of it."""
    nothing = _Decision(False, "", None, None, None)
    before, lines = holder.run_id if holder else None, history(home)
    if before == run_id:
        return nothing
    if before and not asked and _is_known(lines, run_id):
        return nothing
    manifests = _candidates(home, run_id)
    real = any(not manifest.is_rehearsal for manifest in manifests.values())
    decision = decide(manifests[run_id], holder, real, gate)
    noted = any((line["run_id"], line.get("from"), line["moved"]) == (run_id, before, False) for line in lines)
    return nothing if noted and not decision.move else decision


def _candidates(home: pathlib.Path, run_id: str, hashes: bool = False) -> dict[str, Manifest]:
    """Read what is delivered, where a run is among it and whole.

    Raises:
        UserError: It is not.
    """
    manifests = delivered_manifests(home)
    if run_id not in manifests:
        delivered = f"Delivered: {', '.join(manifests)}" if manifests else "Nothing is delivered yet"
        hint = nearest(run_id, manifests) or "."
        raise UserError(f"{home.name} has no adapter «{run_id}» in {home}{hint} {delivered}")
    defect = store.integrity_error(home / run_id, hashes)
    if defect:
        raise UserError(f"{run_id} is not whole: {defect}. The training that made it, run again, delivers it again")
    return manifests


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
    agent, manifests = home.name, _candidates(home, run_id, hashes=True)
    real = [name for name, manifest in manifests.items() if not manifest.is_rehearsal]
    if manifests[run_id].is_rehearsal and real:
        raise UserError(
            f"{run_id} is a rehearsal, with a tiny random model, and {agent} has a real adapter ({real[-1]}); "
            "a rehearsal never displaces one"
        )
    _movable(home, run_id)
    holder = current_manifest(home)
    if holder and holder.run_id == run_id:
        return False
    if check:
        return True
    with _locked(home) as book:
        holder = _noted_holder(home, book)
        decision = decide(manifests[run_id], holder, bool(real), Gate("loss", float("inf"), "move"))
        decision = dataclasses.replace(decision, move=True, why=f"by hand; {decision.why}")
        _move(home, book, run_id, holder.run_id if holder else None, decision, "hand")
    return True


def overview(home: pathlib.Path) -> list[dict[str, Any]]:
    """List what may be promoted of an agent, the newest first.

    Args:
        home: output/adapters/<agent>.

    Returns:
        A list of {run_id, rehearsal, score, eval_loss, steps, finished_at, promoted, comparable, defect}: score is that
        of its agent's cases, None without one; comparable says in words whether the eval loss can be held against the
        promoted one's, defect what is wrong with the files.
    """
    holder = current_manifest(home)
    rows = []
    for run_id, manifest in reversed(delivered_manifests(home).items()):
        ours = evaluation_of(manifest)
        if holder is None or holder.run_id == run_id:
            comparable = ""
        elif holder.is_rehearsal != manifest.is_rehearsal:
            comparable = "no: one of them is a rehearsal"
        else:
            incomparable = difference(ours, evaluation_of(holder))
            comparable = f"no: {incomparable}" if incomparable else "yes"
        rows.append(
            {
                "run_id": run_id,
                "rehearsal": manifest.is_rehearsal,
                "score": _score(manifest, holder),
                "eval_loss": ours.eval_loss,
                "steps": {"reached": manifest.steps.reached, "planned": manifest.steps.planned},
                "finished_at": manifest.finished_at,
                "promoted": bool(holder and holder.run_id == run_id),
                "comparable": comparable,
                "defect": store.integrity_error(home / run_id),
            }
        )
    return rows


def _score(manifest: Manifest, holder: Optional[Manifest]) -> Optional[dict[str, Any]]:
    """Return how an adapter did on its cases, and whether the promoted one was asked the same; None without a score."""
    merit, theirs = manifest.merit, holder.merit if holder else None
    if merit is None or None in (merit.score.share, merit.score.low, merit.score.high):
        return None
    return merit.score.as_dict() | {"same_cases": theirs is None or theirs.cases_sha256 == merit.cases_sha256}


def table_row(row: dict[str, Any]) -> list[str]:
    """Lay out a row of :func:`overview` under :data:`COLUMNS`."""
    steps, finished, score = row["steps"], row["finished_at"], row["score"]
    return [
        row["run_id"] + (" (rehearsal)" if row["rehearsal"] else ""),
        f"{100 * score['share']:.0f} %" if score else NOTHING,
        f"{score['cases']}{'' if score['same_cases'] else ' (other cases)'}" if score else NOTHING,
        f"{100 * score['low']:.0f} to {100 * score['high']:.0f} %" if score else NOTHING,
        NOTHING if row["eval_loss"] is None else f"{row['eval_loss']:.4g}",
        NOTHING if steps["reached"] is None else f"{steps['reached']}/{steps['planned']}",
        _moment(finished),
        "latest" if row["promoted"] else "damaged" if row["defect"] else "",
        row["comparable"],
    ]


def _moment(at: Optional[float]) -> str:
    """Write a time in epoch seconds; nothing for one that no calendar has, as a damaged manifest may say."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else NOTHING
    except (OverflowError, ValueError, OSError):
        return NOTHING


def message(home: pathlib.Path, run_id: str) -> str:
    """Tell people what became of ``latest`` after a run; empty when it points there and nothing is to be added.

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
    if (store.read_manifest(home / run_id) or Manifest()).is_rehearsal and why != HUMAN:
        return stays
    return f"{stays}. By hand: {BY_HAND.format(agent=home.name, run_id=run_id)}"


def waits(home: pathlib.Path, run_id: str) -> bool:
    """Tell whether a run waits for somebody to decide on it, as the gate is told to leave that to people.

    Args:
        home: output/adapters/<agent>.
        run_id: A delivered run.
    """
    if points_to(home / LATEST) == run_id:
        return False
    line: dict[str, Any] = next((line for line in reversed(history(home)) if line["run_id"] == run_id), {})
    return line.get("why") == HUMAN


def outcome(home: pathlib.Path, run_id: str, moved: bool, check: bool) -> str:
    """Tell people what came of the wish to promote a run.

    Args:
        home: output/adapters/<agent>.
        run_id: A delivered run.
        moved: What :func:`promote` or :func:`promote_by_hand` returned.
        check: Whether they changed nothing.
    """
    if moved:
        return f"latest {'would point' if check else 'points'} to {run_id}"
    holder = current_manifest(home)
    return f"latest points to {run_id} already" if holder and holder.run_id == run_id else message(home, run_id)


@contextlib.contextmanager
def _locked(home: pathlib.Path) -> Iterator[IO[bytes]]:
    """Open the history for appending, and for nobody else: two hosts may deliver runs of one agent at a time."""
    with rundir.locked(home / _HISTORY), (home / _HISTORY).open("a+b") as book:
        yield book


def _noted_holder(home: pathlib.Path, book: IO[bytes]) -> Optional[Manifest]:
    """Return the promoted one's manifest, and see to it that the history has a line of it.

    It may have none: see :func:`_move`; or an earlier version moved ``latest``, or somebody with ``ln``.
    """
    holder, lines = current_manifest(home), history(home)
    if holder and not _is_known(lines, str(holder.run_id)):
        before = next((line["run_id"] for line in reversed(lines) if line["moved"]), None)
        loss = evaluation_of(holder).eval_loss
        decision = _Decision(True, "latest was found there; nobody had noted it", None, loss, None)
        _note(book, str(holder.run_id), before, decision, "unknown")
    return holder


def _move(
    home: pathlib.Path, book: IO[bytes], run_id: str, before: Optional[str], decision: _Decision, by: str
) -> None:
    """Carry a decision out, and note it.

    The link comes first, as it is what counts. A crash before the line leaves a promoted run without one, and the next
    call adds that (:func:`_noted_holder`). The other way round, the history would tell of a move that never was.
    """
    if decision.move:
        _point(home, run_id)
    _note(book, run_id, before, decision, by)


def _point(home: pathlib.Path, run_id: str) -> None:
    """Let ``latest`` point to a run, in one rename; under the lock."""
    link, fresh = _movable(home, run_id), home / f".{LATEST}.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(run_id)
    os.replace(fresh, link)


@contextlib.contextmanager
def replacing(home: pathlib.Path, run_id: str) -> Iterator[None]:
    """Take ``latest`` away from a damaged adapter while another one is put in its place.

    It never leads to half an adapter, nor nowhere. Where a crash leaves it missing, the gate decides on the run again.

    Args:
        home: output/adapters/<agent>.
        run_id: The run whose adapter is replaced.
    """
    with _locked(home):
        is_promoted = points_to(home / LATEST) == run_id
        if is_promoted:
            (home / LATEST).unlink()
        yield
        if is_promoted:
            _point(home, run_id)


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
    """Tell where a symbolic link leads; empty when it is none."""
    return os.readlink(link) if link.is_symlink() else ""
