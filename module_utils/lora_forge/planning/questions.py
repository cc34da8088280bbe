"""What the trainer of a run is asked about an adapter: questions alone, of which the answers are not known already."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import merit, promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Manifest, Merit
from ansible.module_utils.lora_forge.adapters.merit import Candidate
from ansible.module_utils.lora_forge.data import cases
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.evaluation import answers
from ansible.module_utils.lora_forge.evaluation.answers import PROMOTED, KeptAnswers
from ansible.module_utils.lora_forge.evaluation.case import Cases
from ansible.module_utils.lora_forge.evaluation.judge import Judge, environment_key
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.agents import listed
from ansible.module_utils.lora_forge.planning.turns import run_files

SCHEMA = 1  # of questions.json: answer_cases.py reads it
REHEARSED, REHEARSED_TOKENS = 2, 32  # cases and tokens of an answer in a rehearsal, whose model says nothing
_SENT = ("adapter_model.safetensors", "adapter_config.json")  # of the promoted adapter
_LEFT = (store.MANIFEST, merit.EVALUATION, answers.FILE)  # of an adapter that is asked by itself: the controller's own


def kept_answers(output: pathlib.Path) -> KeptAnswers:
    """Return the answers that are kept in an output folder."""
    return KeptAnswers(output / "answers")


def judge_of(given: Mapping[str, Any], output: pathlib.Path, say: Callable[[str], None] = lambda _: None) -> Judge:
    """Return the judge that the options of a module name; its key is in the environment alone.

    Args:
        given: The module's options, ``judge_url`` and ``judge_model`` among them.
        output: Where adapters and answers are kept.
        say: Tells people what they wait for.
    """
    kept = kept_answers(output).folder
    return Judge(given["judge_url"], given["judge_model"], kept, environment_key(), say)


def cases_of(run: PlannedRun, checkout: pathlib.Path) -> Optional[Cases]:
    """Read the cases of a run as they are now; None where it has none. A rehearsal is asked a few, in few words.

    Args:
        run: As it was planned.
        checkout: From where a relative path is meant.

    Raises:
        UserError: The file holds what is no case.
    """
    if not run.cases.path:
        return None
    made = cases.read(checkout / run.cases.path)
    return few_of(made) if run.rehearsal else made


def holder_of(run: PlannedRun, home: pathlib.Path) -> Optional[Manifest]:
    """Read the manifest of the adapter that a run's is held against: the promoted one, or the one that was named.

    Args:
        run: The run.
        home: output/adapters/<agent>.
    """
    if not run.against:
        return promotion.current_manifest(home)
    return dataclasses.replace(store.read_manifest(home / run.against) or Manifest(), run_id=run.against)


def candidate_of(
    run: PlannedRun, weights: str, base_model: str, recipe: Mapping[str, Any], home: pathlib.Path
) -> Candidate:
    """Say against whom the adapter of a run is held.

    Args:
        run: The run.
        weights: The SHA-256 of its weights, in hex; empty before there are any.
        base_model: As its trainer finds it.
        recipe: The run's; that of a run that is ready stands in its manifest.
        home: output/adapters/<agent>.
    """
    base, holder = merit.base_key(base_model, recipe), holder_of(run, home)
    if holder is None or holder.run_id == run.adapter or holder.is_rehearsal != run.rehearsal:
        return Candidate(weights, base)
    return Candidate(weights, base, str(holder.run_id), merit.weights_of(holder))


def delivered_candidate(run: PlannedRun, manifest: Manifest, home: pathlib.Path) -> Candidate:
    """Say the same of an adapter that is delivered, by its manifest."""
    return candidate_of(run, merit.weights_of(manifest), str(manifest.base_model), manifest.recipe, home)


def open_questions(run: PlannedRun, made: Cases, candidate: Candidate, output: pathlib.Path) -> dict[str, list[str]]:
    """List by who is to be asked the questions that a trainer of the candidate can put, and nobody has put yet.

    The promoted adapter is asked as well, where it is one of the same base model and has not answered all; one of
    another base model is held against this one by the answers that it gave in its own time.

    Args:
        run: The run.
        made: Its cases.
        candidate: Who is held against whom.
        output: Where adapters and answers are kept.
    """
    ask = merit.open_questions(made, candidate, kept_answers(output))
    holder = holder_of(run, output / "adapters" / run.agent) or Manifest()
    if PROMOTED in ask and merit.base_key(str(holder.base_model), holder.recipe) != candidate.base:
        ask.pop(PROMOTED)
    return ask


def without_damaged(
    run: PlannedRun, ask: Mapping[str, list[str]], promoted: str, home: pathlib.Path, hashes: bool
) -> tuple[dict[str, list[str]], str]:
    """Leave the promoted adapter out where it would have to be sent and is damaged: that is not the run's own fault.

    Args:
        run: The run.
        ask: Of :func:`open_questions`.
        promoted: The run_id of that adapter.
        home: output/adapters/<agent>.
        hashes: Whether its files are hashed.

    Returns:
        What is left to be asked, and a sentence on what is left out; empty for nothing.
    """
    left = {who: list(keys) for who, keys in ask.items()}
    defect = store.integrity_error(home / promoted, hashes) if left.get(PROMOTED) else None
    if not defect:
        return left, ""
    left.pop(PROMOTED)
    return left, f"{run.adapter} is held against no other one: the adapter of {promoted} is not whole: {defect}"


def question_files(
    run: PlannedRun,
    folder: str,
    checkout: pathlib.Path,
    output: pathlib.Path,
    base_model: str,
    warn: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """List what a trainer gets of the cases of a run, as ``transfer`` takes it; nothing where it has none.

    Args:
        run: The run.
        folder: Its directory below the trainer's root.
        checkout: The project's folder.
        output: Where adapters and answers are kept.
        base_model: As the trainer finds it.
        warn: Is told of an adapter that is left out.

    Raises:
        UserError: The file of cases holds what is no case.
    """
    made = cases_of(run, checkout)
    if made is None:
        return []
    ask, asked, promoted = whom_to_ask(run, made, output, base_model)
    held = output / "adapters" / run.agent / promoted
    ask, left_out = without_damaged(run, ask, promoted, held.parent, hashes=bool(run.evaluates))
    if left_out:
        warn(left_out)
        wanted = {key for keys in ask.values() for key in keys}
        asked = {key: question for key, question in asked.items() if key in wanted}
    text = json.dumps({"schema": SCHEMA, "questions": asked, "ask": ask}, ensure_ascii=False)
    files: list[dict[str, Any]] = [{"path": f"{folder}/questions.json", "content": text}]
    if ask.get(PROMOTED):
        files += [{"path": f"{folder}/{PROMOTED}/{name}", "src": str(held / name)} for name in _SENT]
    return files


def whom_to_ask(
    run: PlannedRun, made: Cases, output: pathlib.Path, base_model: str
) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]], str]:
    """Say what is open.

    Args:
        run: The run.
        made: Its cases.
        output: Where adapters and answers are kept.
        base_model: As the trainer finds it.

    Returns:
        By who is asked the keys of questions; the questions by their keys; and the run_id of the promoted adapter.
    """
    home = output / "adapters" / run.agent
    if run.evaluates:
        candidate = delivered_candidate(run, whole_manifest(home / run.evaluates), home)
    else:
        candidate = candidate_of(run, "", base_model, run.recipe, home)
    ask = open_questions(run, made, candidate, output)
    wanted = {key for keys in ask.values() for key in keys}
    return ask, {case.key: case.question for case in made.cases if case.key in wanted}, candidate.promoted


def few_of(made: Cases) -> Cases:
    """Take the cases that a rehearsal is asked, in few words."""
    few = [
        dataclasses.replace(case, max_new_tokens=min(case.max_new_tokens, REHEARSED_TOKENS))
        for case in made.cases[:REHEARSED]
    ]
    return dataclasses.replace(made, cases=tuple(few))


def adapter_files(run: PlannedRun, folder: str, output: pathlib.Path) -> list[dict[str, Any]]:
    """List the files of the adapter that an evaluation asks, with its tokenizer and template, as ``transfer`` takes it.

    Args:
        run: The evaluation.
        folder: Its directory below the trainer's root.
        output: Where adapters are kept.

    Raises:
        UserError: The adapter is not whole.
    """
    home = output / "adapters" / run.agent / run.evaluates
    names = [str(file.path) for file in whole_manifest(home).files or () if "/" not in str(file.path)]
    return [{"path": f"{folder}/adapter/{name}", "src": str(home / name)} for name in names if name not in _LEFT]


def whole_manifest(folder: pathlib.Path, hashes: bool = True) -> Manifest:
    """Read the manifest of a delivered adapter that is to be asked.

    Args:
        folder: output/adapters/<agent>/<run_id>.
        hashes: Whether its files are hashed.

    Raises:
        UserError: The adapter is not whole.
    """
    defect = store.integrity_error(folder, hashes)
    manifest = store.read_manifest(folder)
    if defect or manifest is None:
        raise UserError(
            f"{folder.name} is not evaluated, as its adapter is not whole: {defect}. The training that made it, run "
            "again, delivers it again"
        )
    return manifest


def take_answers(
    run: PlannedRun, sent: pathlib.Path, checkout: pathlib.Path, output: pathlib.Path
) -> tuple[list[str], int]:
    """Keep the answers that a trainer has sent.

    Args:
        run: The run, of which the adapter is delivered.
        sent: Its answers.jsonl; there may be none.
        checkout: The project's folder.
        output: Where adapters and answers are kept.

    Returns:
        What was refused or cut of them, in sentences; and how many questions nobody has put to the adapter yet.

    Raises:
        UserError: The file of cases holds what is no case.
    """
    home = output / "adapters" / run.agent
    made, manifest = cases_of(run, checkout), store.read_manifest(home / run.adapter)
    if made is None or manifest is None:
        return [], 0
    kept, candidate = kept_answers(output), delivered_candidate(run, manifest, home)
    limits = {case.key: case.max_new_tokens for case in made.cases}
    asked = open_questions(run, made, candidate, output)  # by whom, as of another base model nothing was asked
    models = {who: model for who, model in candidate.models.items() if who in asked}
    found, said = answers.read_sent(sent, limits, models)
    for who, given in found.items():
        if given:
            kept.add(models[who], given.values())
    return said, len(merit.open_questions(made, candidate, kept)[answers.ADAPTER])


def _holds_latest(home: pathlib.Path, run: PlannedRun) -> bool:
    return promotion.points_to(home / promotion.LATEST) == run.adapter


def evaluate_delivered(
    run: PlannedRun,
    checkout: pathlib.Path,
    output: pathlib.Path,
    judge: Optional[Judge] = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Evaluate a delivered adapter by the answers that are known: those that came with it, and those that are kept.

    Nothing is written where nothing is new. What was answered stays, whatever is expected of it today. Verdicts of a
    judge that are there are not given up for fewer of them.

    Args:
        run: The run.
        checkout: The project's folder.
        output: Where adapters and answers are kept.
        judge: Asked where a check is for one; None where nobody is.
        say: Is told that another command has the adapter's files.

    Returns:
        What was refused of the trainer's answers, in sentences; told once.

    Raises:
        UserError: The file of cases holds what is no case, or another command has had the adapter's files for too long.
    """
    if not run.cases.path or _is_settled(run, output, judge):  # of hundreds of agents most have nothing new
        return []
    with run_files(output, run.adapter, say):  # another command may write the same manifest
        return [] if _is_settled(run, output, judge) else _evaluate_anew(run, checkout, output, judge)


def unasked_cases(runs: Sequence[PlannedRun], checkout: pathlib.Path, output: pathlib.Path) -> list[str]:
    """Warn where what is ready has not answered cases that were written or changed since: no training asks it again.

    Args:
        runs: As they are planned.
        checkout: The project's folder.
        output: Where adapters and answers are kept.

    Returns:
        One sentence with the command that asks; nothing where all is answered.

    Raises:
        UserError: A file of cases holds what is no case.
    """
    found = [run for run in runs if run.state == "ready" and run.cases.path and _lacks_answers(run, checkout, output)]
    if not found:
        return []
    agents = list(dict.fromkeys(run.agent for run in found))
    named = "-e run_id=…" if any(run.variant for run in found) else f"-e role={agents[0] if len(agents) == 1 else '…'}"
    return [
        f"{listed(agents)}: what is ready has not answered all cases, such as those that were written or changed "
        f"since, and no training asks it; ansible-playbook playbooks/evaluate.yml {named} does"
    ]


def _lacks_answers(run: PlannedRun, checkout: pathlib.Path, output: pathlib.Path) -> bool:
    """Tell whether nobody has put some of a run's cases to its adapter, which is delivered."""
    folder = output / "adapters" / run.agent / run.adapter
    manifest = store.read_manifest(folder)
    if manifest is None or (manifest.merit is None and (folder / answers.FILE).exists()):  # the summary reads them
        return False
    known = manifest.merit
    if known and known.cases_sha256 == run.cases.sha256 and not known.unanswered:  # as of hundreds most are
        return False
    made, tried = cases_of(run, checkout), kept_answers(output).tried(merit.weights_of(manifest))
    return made is not None and any(case.key not in tried for case in made.cases)


def _is_same(run: PlannedRun, known: Optional[Merit], candidate: Candidate, home: pathlib.Path) -> bool:
    """Tell whether a merit is of the cases as they are, and against whom a run's adapter is held."""
    # Of the promoted one itself it stays known what it was better than.
    against = (candidate.promoted, known.against) if known and _holds_latest(home, run) else (candidate.promoted,)
    return known is not None and known.cases_sha256 == run.cases.sha256 and known.against in against


def _is_settled(run: PlannedRun, output: pathlib.Path, judge: Optional[Judge]) -> bool:
    """Tell whether nothing new can be said of a delivered adapter; also where there is none."""
    home = output / "adapters" / run.agent
    manifest = store.read_manifest(home / run.adapter)
    if manifest is None:
        return True
    known, candidate = manifest.merit, delivered_candidate(run, manifest, home)
    if known is None or known.unanswered or not _is_same(run, known, candidate, home):
        return False
    # The promoted one may have answered since.
    return bool(known.than.cases or known.unloadable or not candidate.than) and not _has_news(known, judge)


def _evaluate_anew(run: PlannedRun, checkout: pathlib.Path, output: pathlib.Path, judge: Optional[Judge]) -> list[str]:
    home = output / "adapters" / run.agent
    folder = home / run.adapter
    manifest = store.read_manifest(folder) or Manifest()
    known, candidate = manifest.merit, delivered_candidate(run, manifest, home)
    same = _is_same(run, known, candidate, home)
    said, _ = take_answers(run, folder / answers.FILE, checkout, output)
    if same and known and known.against and not candidate.promoted:
        held = store.read_manifest(home / known.against) or Manifest()
        candidate = dataclasses.replace(candidate, promoted=known.against, than=merit.weights_of(held))
    made = cases_of(run, checkout)
    assert made is not None
    rows, found = merit.evaluate(made, candidate, kept_answers(output), judge)
    fewer = same and known and not known.unanswered and found.unjudged > known.unjudged
    if not fewer and (rows, found) != merit.read(folder):
        merit.write(folder, rows, found)
    # Later the cases are others, or another one is promoted: that what it sent does not fit is nothing to complain of.
    return said if known is None else []


def _has_news(known: Merit, judge: Optional[Judge]) -> bool:
    """Tell whether a judge may say what is not known yet: some checks have no verdict, or one of another judge."""
    lacking = known.unjudged or known.unchecked
    return bool(judge and judge.is_named and (lacking or (known.judge and known.judge != judge.model)))


def evaluate(
    run: PlannedRun,
    manifest: Manifest,
    checkout: pathlib.Path,
    output: pathlib.Path,
    judge: Optional[Judge] = None,
) -> tuple[list[dict[str, Any]], Optional[Merit]]:
    """Check the kept answers of a delivered adapter; write nothing.

    Args:
        run: The run.
        manifest: The adapter's.
        checkout: The project's folder.
        output: Where adapters and answers are kept.
        judge: Asked where a check is for one; None where nobody is.

    Returns:
        A row for each case, and the merit; None without cases.

    Raises:
        UserError: The file of cases holds what is no case.
    """
    made, home = cases_of(run, checkout), output / "adapters" / run.agent
    if made is None:
        return [], None
    return merit.evaluate(made, delivered_candidate(run, manifest, home), kept_answers(output), judge)
