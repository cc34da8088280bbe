"""An archive of a failed run for whoever helps: what helps is in it; keys, and what was trained on, are not."""

from __future__ import annotations

import json
import re
import stat
import tarfile
from pathlib import Path

import pytest
import rundir
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import plan
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.version import describe_versions, git_facts
from hostile import CONTROL, Played, Stage
from lab import ROOT
from seen import Seen

AGENTS = {"good": "witness", "dead": "mayor", "liar": "deacon", "lost": "polecat"}

WORD = "ab" * 16  # by which the hosts of a gang find each other

KEYS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz012345",
    "RUNPOD_API_KEY": "rpa_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123",
    "LORA_FORGE_NOTIFY_URL": "https://hooks.example.org/services/T0000/B0000/abcdefghijklmnop",
    "MY_OWN_SECRET": "correct-horse-battery",
}
PASSWORD = "of-the-inventory-9"
# As an inventory may have them: in mappings and lists of any name, where one name on the way says what it is.
NESTED = {
    "my_tokens": {"hub": "hub-3f9a-of-mine", "others": [{"eu": "eu-77c1-of-mine"}]},
    "our_services": {"git": {"env": {"GIT_PASSWORD": "git-b20e-of-mine"}}, "list": [{"api_key": "{{ elsewhere }}"}]},
    "elsewhere": "vault-51dd-of-mine",
}
DEEP = ["hub-3f9a-of-mine", "eu-77c1-of-mine", "git-b20e-of-mine", "vault-51dd-of-mine"]
UNKNOWN = ["ghp_abcdefghijklmnopqrstuvwxyz0123456789", "AKIAABCDEFGHIJKLMNOP", "sk-abcdefghijklmnopqrstuvwxyz"]
SAID = [
    "Rig 7 keeps two polecats waiting behind the blocked merge of bead gt-4711",
    "Nudge the refinery, then tell nobody but Ms Ferrari-Okonkwo about the café",
    "the third password reset was at noon",
]
SPOKEN = json.dumps(
    {"conversations": [{"from": "human", "value": SAID[0]}, {"from": "gpt", "value": "\n".join(SAID[1:])}]}
)


def traceback(message: str) -> str:
    return f"""Traceback (most recent call last):
  File "/opt/env/lib/python3.12/site-packages/axolotl/cli/train.py", line 121, in do_cli
    return do_train(parsed_cfg, parsed_cli_args)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/opt/env/lib/python3.12/site-packages/axolotl/prompt_strategies/chat_template.py", line 7, in tokenize
    raise ValueError(f"cannot tokenize {{example}}")
ValueError: {message}
"""


def train_log() -> str:
    everything = " ".join([*KEYS.values(), *UNKNOWN, PASSWORD, *DEEP])
    head = "[2026-11-23 11:37:39,123] [INFO] [axolotl.utils.data.sft:88] [PID:42]"
    tokens = " ".join(f"{word}({-100}, {number})" for number, word in enumerate(SAID[0].split()))
    return "\n".join([
        f"{head} Loading the dataset from /data/witness_train.jsonl",
        f"{head} the example was {SAID[0]!r}",
        f"{head} {tokens}",
        f"{head} keys: {everything}",
        f"{head} cloned https://me:{PASSWORD}@git.example.org/x.git, Authorization: Bearer abcdef0123456789",
        *SAID,
        SPOKEN,
        *(f"{word} ({number}, {number})" for number, word in enumerate(SAID[1].split())),
        "{'loss': 1.25, 'grad_norm': 0.5, 'learning_rate': 2e-4, 'epoch': 0.1}",
        f"{{'loss': 1.25, 'said': '{SAID[2]}'}}",
        traceback(f"cannot tokenize {json.loads(SPOKEN)!r}"),
        traceback(f"row 3: {SAID[1].upper()}"),
    ])  # fmt: skip


def plant(stage: Stage, host: str, agent: str) -> Path:
    """Leave a failed run, in all of whose files is what must not be told."""
    run_dir = stage.finished(host, agent)
    everything = " ".join([*SAID, *KEYS.values(), *UNKNOWN, PASSWORD, *DEEP])
    (run_dir / "train.log").write_text(train_log())
    (run_dir / "supervisor.log").write_text(
        f"2026-11-23 11:37:38 trainer started, pid 42, from step 0\n{everything}\n"
        f"2026-11-23 11:37:39 failed: crashed: exit code 1: ValueError: {everything}\n"
    )
    reason = {"kind": "crashed", "detail": f"exit code 1: ValueError: {everything}\n{traceback(SAID[2])}"}
    rundir.write_json(run_dir / "status.json", {"state": "failed", "exit_code": 1, "starts": 1, "reason": reason})
    rundir.append_event(run_dir / "metrics.jsonl", f"event {SAID[2]}", mode=KEYS["WANDB_API_KEY"], wanted=SAID[1][:150])
    env = "\n".join(f"  {name}: {value}" for name, value in KEYS.items())
    (run_dir / "axolotl.yml").write_text(
        f"learning_rate: 0.0002\nenv:\n{env}\nhub_token: {UNKNOWN[0]}\nsystem: {SAID[1]}\n{SAID[0]}\n"
    )
    return run_dir


class Site(Stage):
    """A stage whose agents learn what is said here.

    Attributes:
        ids: The run of each host.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.ids: dict[str, str] = {}

    @property
    def data(self) -> Path:
        return self.home / "data"

    def planned(self, agent: str, trainer: str) -> PlannedRun:
        where = Trainer(trainer, datasets_dir=str(self.data), profile="rehearsal")
        (run,) = plan.make(ROOT, self.folder / "none", agent, [where], {}).runs
        return run


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("site"))
    site.data.mkdir()
    for agent in AGENTS.values():
        lines = [SPOKEN.replace("Rig 7", f"Rig {number}") for number in range(7, 40)]
        (site.data / f"{agent}_train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return site


@pytest.fixture(scope="module")
def played(stage: Site) -> Played:
    """Write archives of runs: the host answers, or is dead, or lies, or answers of data that is not here any more."""
    for name, agent in AGENTS.items():
        stage.host(name, agent, ansible_become_password=PASSWORD, **NESTED)
        stage.ids[name] = stage.planned(agent, name).run_id
    for name in ("good", "liar", "lost"):
        plant(stage, name, AGENTS[name])
    stage.face("dead", "module", "close")
    stage.face(
        "liar", "module", "say", text=json.dumps({"changed": False, "train_log": "../../evil", "files": ["/etc/x"]})
    )
    run = stage.planned("mayor", "dead")
    failure = {"at": 1.0, "message": f"ValueError: {SAID[1]} {KEYS['HF_TOKEN']}\n{traceback(SAID[0])}"}
    (stage.output / "runs").mkdir(parents=True)
    record = {"failures": {"dead": failure}, "rendezvous": WORD, "trainer": "dead", "state": "launched"}
    rundir.write_json(stage.output / f"runs/{run.run_id}.json", record)
    noted = {"trainer": "lost", "state": "failed", "final": True}
    rundir.write_json(stage.output / f"runs/{stage.ids['lost']}.json", noted)
    (stage.data / "polecat_train.jsonl").unlink()
    guard = stage.watch_over()
    names = f"role={','.join(AGENTS.values())}"
    done = stage.play(
        "playbooks/logs.yml", "-e", names, "-e", "bundle=true", "-e", f"datasets_dir={stage.data}", **KEYS
    )
    assert guard.changes() == []
    return done


def archive(stage: Site, name: str) -> dict[str, str]:
    """Return the files in the archive of a host's run, by name."""
    run_id = stage.ids[name]
    path = stage.output / "bundles" / f"{run_id}.tar.gz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size < 1 << 20
    with tarfile.open(path) as file:
        entries = file.getmembers()
        assert all(entry.isfile() and re.fullmatch(rf"{run_id}/[\w.-]+", entry.name) for entry in entries)
        return {entry.name.partition("/")[2]: file.extractfile(entry).read().decode() for entry in entries}  # type: ignore[union-attr]


def squashed(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


@pytest.mark.parametrize("name", AGENTS)
def test_no_key_and_nothing_of_the_data_is_in_it(stage: Site, played: Played, name: str, seen: Seen) -> None:
    text = "\n".join(archive(stage, name).values())
    for key in (*KEYS.values(), *UNKNOWN, PASSWORD, *DEEP, WORD, "T0000/B0000"):
        assert key not in text
    for sentence in SAID:
        words = sentence.split()
        for at in range(len(words) - 3):
            piece = squashed("".join(words[at : at + 4]))
            assert piece not in squashed(text), piece
    assert "Ferrari" not in text
    whose = {
        "good": "a host that answers",
        "dead": "a host that is dead",
        "liar": "a host that lies",
        "lost": "a host that answers, and the data is gone here",
    }[name]
    seen(
        f"keys and sentences of the data stand in all files of a failed run, of which an archive is made: {whose}",
        "here",
        "neither a key nor four words of the data in a row are in it",
    )


def test_what_helps_is_in_it(stage: Site, played: Played) -> None:
    files = archive(stage, "good")
    run = stage.planned("witness", "good")
    log = files["train.log"]
    assert 'site-packages/axolotl/cli/train.py", line 121, in do_cli' in log
    assert "    return do_train(parsed_cfg, parsed_cli_args)" in log
    assert 'raise ValueError(f"cannot tokenize {example}")' in log
    assert log.count("ValueError: ") == 2
    assert "[axolotl.utils.data.sft:88] [PID:42] Loading the dataset from /data/witness_train.jsonl" in log
    assert "{'loss': 1.25, 'grad_norm': 0.5, 'learning_rate': 2e-4, 'epoch': 0.1}" in log
    assert "lines of no known kind left out" in log
    assert "trainer started, pid 42, from step 0" in files["supervisor.log"]
    assert "failed: crashed: exit code 1: ValueError: " in files["supervisor.log"]
    status = json.loads(files["status.json"])
    assert (status["state"], status["status"]["exit_code"]) == ("failed", 1)
    assert status["detail"].startswith("crashed: exit code 1: ValueError: ")
    assert json.loads(files["plan.json"])["fingerprint"] == run.fingerprint
    assert describe_versions(git_facts(ROOT)) in files["versions.txt"]
    assert json.loads(files["lock.json"])["packages"]["axolotl"] == run.axolotl
    assert "learning_rate: 0.0002" in files["axolotl.yml"]
    assert "learning_rate" in files["recipe-base.yml"]
    assert json.loads(files["host.json"])["host"]["kernel"].startswith("Linux ")
    kinds = [json.loads(line) for line in files["events.jsonl"].splitlines()]
    assert {"event": "log", "step": 3, "planned": 12, "loss": 2.7}.items() <= kinds[3].items()


def test_a_dead_host_costs_only_what_it_knows(stage: Site, played: Played) -> None:
    files = archive(stage, "dead")
    assert "everything that the trainer knows, as dead could not be asked: " in files["README.txt"]
    failure = json.loads(files["record.json"])["failures"]["dead"]["message"]
    assert failure.startswith("ValueError: ")
    assert 'axolotl/cli/train.py", line 121' in failure
    assert "base_model:" in files["axolotl.yml"]
    assert json.loads(files["plan.json"])["agent"] == "mayor"
    assert "train.log" not in files


def test_a_host_that_lies_costs_only_its_own_word(stage: Site, played: Played) -> None:
    files = archive(stage, "liar")
    assert "its answer to training_run_evidence does not fit" in files["README.txt"]
    assert json.loads(files["plan.json"])["agent"] == "deacon"


def test_without_the_data_only_what_is_short_is_in_it(stage: Site, played: Played) -> None:
    files = archive(stage, "lost")
    head = f"{stage.ids['lost']} on lost. Its data is not known here, so that only what is short is in this archive\n"
    assert files["README.txt"].startswith(head)
    assert json.loads(files["status.json"])["status"]["exit_code"] == 1
    assert json.loads(files["record.json"])["state"] == "failed"


def test_the_command_says_where_it_is_and_what_is_in_it(stage: Site, played: Played) -> None:
    assert played.code == 0, played.text
    assert CONTROL.findall(played.text) == []
    assert "Traceback" not in played.text
    for run_id in stage.ids.values():
        assert f"bundles/{run_id}.tar.gz is written" in played.text
    assert "its runs are those that were noted: no dataset for polecat" in played.text
    assert "train.log" in played.text
    assert "dead could not be asked" in played.text
    for word in (*KEYS.values(), *UNKNOWN, PASSWORD, *SAID):
        assert word not in played.text
