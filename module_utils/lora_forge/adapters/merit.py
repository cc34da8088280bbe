"""An adapter's merit: its answers to its agent's cases, held against those of its base and of the promoted one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.manifest import Manifest, Merit
from ansible.module_utils.lora_forge.evaluation import scores
from ansible.module_utils.lora_forge.evaluation.answers import (
    ADAPTER,
    BASE,
    PROMOTED,
    UNLOADABLE,
    Answer,
    KeptAnswers,
)
from ansible.module_utils.lora_forge.evaluation.case import Case, Cases
from ansible.module_utils.lora_forge.evaluation.checks import Graded, grade, right_by, visible
from ansible.module_utils.lora_forge.evaluation.judge import UNNAMED, Judge, Query, Verdict
from ansible.module_utils.lora_forge.text import canonical

EVALUATION = "evaluation.jsonl"  # in the adapter's folder: a line for each case
# What of a recipe decides what its base model answers, beside the weights themselves.
_LOADED = (
    "model_revision",
    "revision_of_model",
    "load_in_4bit",
    "load_in_8bit",
    "chat_template",
    "chat_template_jinja",
)


def weights_of(manifest: Manifest) -> str:
    """Return the SHA-256 of an adapter's weights, in hex; empty where the manifest does not say."""
    return next((str(file.sha256) for file in manifest.files or () if file.path == store.WEIGHTS and file.sha256), "")


def base_key(base_model: str, recipe: Mapping[str, Any]) -> str:
    """Name what a base model answers as it is loaded for a recipe: a SHA-256 in hex.

    Args:
        base_model: As a trainer finds it; a rehearsal's goes by what it was made of.
        recipe: The run's.
    """
    loaded = {key: recipe[key] for key in _LOADED if recipe.get(key) is not None}
    name = pathlib.PurePath(base_model).name if base_model.startswith("/") else base_model
    return hashlib.sha256(canonical([name, loaded]).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Who is held against whom.

    Attributes:
        weights: The SHA-256 of the adapter in question, in hex.
        base: The key of its base model's answers.
        promoted: The run_id of the promoted adapter; empty where there is none, or it is this one.
        than: The SHA-256 of the promoted adapter's weights, in hex.
    """

    weights: str
    base: str
    promoted: str = ""
    than: str = ""

    @property
    def models(self) -> dict[str, str]:
        """By who is asked, what their answers are kept under."""
        return {ADAPTER: self.weights, BASE: self.base} | ({PROMOTED: self.than} if self.than else {})


def open_questions(cases: Cases, candidate: Candidate, kept: KeptAnswers) -> dict[str, list[str]]:
    """List by who is to be asked the questions that nobody has asked them yet."""
    keys = list(dict.fromkeys(case.key for case in cases.cases))
    found = {}
    for who, model in candidate.models.items():
        known = kept.tried(model) if model else {}
        found[who] = [key for key in keys if key not in known]
    return found


def evaluate(
    cases: Cases, candidate: Candidate, kept: KeptAnswers, judge: Optional[Judge] = None
) -> tuple[list[dict[str, Any]], Merit]:
    """Check the answers that there are.

    Like is held against like: a check that could not be made of everybody's answer to a case says nothing of any.

    Args:
        cases: What is asked, and expected.
        candidate: Who is held against whom.
        kept: The answers.
        judge: Asked whether sentences are true of answers; None where nobody is.

    Returns:
        A row for each case, and the merit; of an adapter that has not answered all cases it says so.
    """
    tried = {who: kept.tried(model) for who, model in candidate.models.items()}
    answers = {who: {key: one for key, one in given.items() if not one.error} for who, given in tried.items()}
    theirs = [known for case in cases.cases if (known := tried.get(PROMOTED, {}).get(case.key))]
    # What has answered some of them is held against that, whatever a trainer says of it since.
    faults = [] if any(not one.error for one in theirs) else [one.error for one in theirs]
    verdicts, open_checks = _judged(cases.cases, answers.values(), judge)
    graded = _alike({who: dict(_graded(cases.cases, given, verdicts)) for who, given in answers.items()})
    rows = [_row(case, answers, graded) for case in cases.cases]
    right = {
        who: {name: one.right for name, one in known.items() if one.right is not None} for who, known in graded.items()
    }
    weight = {case.name: case.weight for case in cases.cases}
    score = {who: scores.score([(weight[name], one) for name, one in known.items()]) for who, known in right.items()}
    ours = right[ADAPTER]
    return rows, Merit(
        cases_sha256=cases.sha256,
        weights_sha256=candidate.weights,
        evaluation_sha256=hashlib.sha256(_lines(rows)).hexdigest(),
        cases=len(cases.cases),
        unanswered=sum(case.key not in answers[ADAPTER] for case in cases.cases),
        unchecked=sum(one.right is None for one in graded[ADAPTER].values()),
        score=score[ADAPTER],
        base=score[BASE],
        over_base=scores.compare(ours, right[BASE]),
        against=candidate.promoted,
        than=score.get(PROMOTED, scores.Score()),
        over_promoted=scores.compare(ours, right.get(PROMOTED, {})),
        unloadable=next((error for error in faults if error.startswith(UNLOADABLE)), ""),
        broken=tuple(name for name, one in graded[ADAPTER].items() if one.broken),
        judge=judge.model if judge and (verdicts or open_checks) else "",
        unjudged=open_checks,
        why_unjudged=(judge.problem if judge else UNNAMED) if open_checks else "",
    )


def _query(case: Case, sentence: str, answer: str) -> Query:
    return Query(case.key, sentence, visible(answer), case)


def _judged(
    cases: Sequence[Case], answers: Iterable[Mapping[str, Answer]], judge: Optional[Judge]
) -> tuple[dict[Query, Verdict], int]:
    """Have a judge look at all answers that are for one; return the verdicts, and how many there are not."""
    queries = [
        _query(case, check.wanted, given[case.key].text)
        for given in answers
        for case in cases
        for check in (*case.expect, *case.forbid)
        if check.kind == "judge" and case.key in given
    ]
    verdicts = judge.verdicts(queries) if judge and queries else {}
    return verdicts, sum(query not in verdicts for query in queries)


def _graded(
    cases: Sequence[Case], answers: Mapping[str, Answer], verdicts: Mapping[Query, Verdict]
) -> Iterator[tuple[str, Graded]]:
    for case in cases:
        if case.key in answers:
            answer = answers[case.key].text

            def found(sentence: str, case: Case = case, answer: str = answer) -> Optional[Verdict]:
                return verdicts.get(_query(case, sentence, answer))

            yield case.name, grade(case.expect, case.forbid, answer, found)


def _alike(graded: Mapping[str, Mapping[str, Graded]]) -> dict[str, dict[str, Graded]]:
    """Leave a check that was not made of everybody's answer out of what decides whether an answer is right."""
    made: dict[str, dict[str, Graded]] = {who: {} for who in graded}
    for name in {name: None for known in graded.values() for name in known}:
        ones = {who: known[name] for who, known in graded.items() if name in known}
        columns = zip(*(one.results for one in ones.values()))
        counts = [all(row["held"] is not None for row in column) for column in columns]
        for who, one in ones.items():
            made[who][name] = dataclasses.replace(one, right=right_by(one.results, counts))
    return made


def _row(
    case: Case, answers: Mapping[str, Mapping[str, Answer]], graded: Mapping[str, Mapping[str, Graded]]
) -> dict[str, Any]:
    said = {}
    for who, known in graded.items():
        if case.name in known:
            answer, one = answers[who][case.key], known[case.name]
            said[who] = {
                "text": answer.text,
                "tokens": answer.tokens,
                "ended": answer.ended,
                "right": one.right,
                "checks": [dict(row) for row in one.results],
            }
    return {
        "case": case.name,
        "key": case.key,
        "weight": case.weight,
        "messages": list(case.messages),
        "answers": said,
    }


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows as evaluation.jsonl has them, in ASCII: an answer may hold half of a character, which is no UTF-8."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], merit: Merit) -> None:
    """Put an evaluation into an adapter's folder, and its merit into the manifest.

    The manifest says the hash of the rows: where a crash came between the two, there is no evaluation, and it is made
    again of the answers.

    Args:
        folder: output/adapters/<agent>/<run_id>.
        rows: Of :func:`evaluate`.
        merit: Of the same.
    """
    rundir.write_bytes(folder / EVALUATION, _lines(rows))
    manifest = store.read_manifest(folder) or Manifest()
    rundir.write_json(folder / store.MANIFEST, dataclasses.replace(manifest, merit=merit).as_dict())


def merit_of(manifest: Optional[Manifest]) -> Optional[Merit]:
    """Return the merit in a manifest; None where it has none, or one of other weights."""
    known = manifest.merit if manifest else None
    return (
        known if manifest and known and known.weights_sha256 and known.weights_sha256 == weights_of(manifest) else None
    )


def right_answers(folder: pathlib.Path) -> dict[str, bool]:
    """Return by the name of each case that could be checked whether an adapter was right; nothing without a merit.

    Args:
        folder: output/adapters/<agent>/<run_id>.
    """
    told = {str(row.get("case")): _right(row) for row in read(folder)[0]}
    return {name: right for name, right in told.items() if right is not None}


def _right(row: Mapping[str, Any]) -> Optional[bool]:
    answers = row.get("answers")
    ours = answers.get(ADAPTER) if isinstance(answers, dict) else None
    right = ours.get("right") if isinstance(ours, dict) else None
    return right if isinstance(right, bool) else None


def read(folder: pathlib.Path) -> tuple[list[dict[str, Any]], Optional[Merit]]:
    """Read an adapter's evaluation; none where it has none, or one of other weights or another file.

    Args:
        folder: output/adapters/<agent>/<run_id>.
    """
    merit = merit_of(store.read_manifest(folder))
    if merit is None:
        return [], None
    try:
        text = (folder / EVALUATION).read_bytes()
    except OSError:
        return [], None
    if hashlib.sha256(text).hexdigest() != merit.evaluation_sha256:
        return [], None
    return rundir.read_lines(folder / EVALUATION)[0], merit
