"""An adapter's merit: its answers to its agent's cases, held against those of its base and of the promoted one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.manifest import Manifest, Merit
from ansible.module_utils.lora_forge.evaluation import scores
from ansible.module_utils.lora_forge.evaluation.answers import ADAPTER, BASE, PROMOTED, Answer, KeptAnswers
from ansible.module_utils.lora_forge.evaluation.case import Case, Cases
from ansible.module_utils.lora_forge.evaluation.checks import Graded, Judge, grade
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
    cases: Cases, candidate: Candidate, kept: KeptAnswers, judge: Judge = lambda sentence, text: None
) -> tuple[list[dict[str, Any]], Merit]:
    """Check the answers that there are.

    Args:
        cases: What is asked, and expected.
        candidate: Who is held against whom.
        kept: The answers.
        judge: Answers sentences; see :func:`checks.holds`.

    Returns:
        A row for each case, and the merit; of an adapter that has not answered all cases it says so.
    """
    answers = {who: kept.read(model) for who, model in candidate.models.items()}
    graded = {who: dict(_graded(cases.cases, given, judge)) for who, given in answers.items()}
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
        broken=tuple(name for name, one in graded[ADAPTER].items() if one.broken),
    )


def _graded(cases: Sequence[Case], answers: Mapping[str, Answer], judge: Judge) -> Iterator[tuple[str, Graded]]:
    for case in cases:
        if case.key in answers:
            yield case.name, grade(case.expect, case.forbid, answers[case.key].text, judge)


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


def read(folder: pathlib.Path) -> tuple[list[dict[str, Any]], Optional[Merit]]:
    """Read an adapter's evaluation; none where it has none, or one of other weights or another file.

    Args:
        folder: output/adapters/<agent>/<run_id>.
    """
    manifest = store.read_manifest(folder)
    merit = manifest.merit if manifest else None
    if manifest is None or merit is None or merit.weights_sha256 != weights_of(manifest):
        return [], None
    try:
        text = (folder / EVALUATION).read_bytes()
    except OSError:
        return [], None
    if hashlib.sha256(text).hexdigest() != merit.evaluation_sha256:
        return [], None
    return rundir.read_lines(folder / EVALUATION)[0], merit
