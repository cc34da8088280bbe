"""A message on its way: a real HTTP server, and what is said of one that does not arrive."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.controller import notify, webhook
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning.run_record import read_record, update_record
from ansible.module_utils.lora_forge.pods.claims import Claims
from hook import SECRET, Hook, serving
from lab import ROOT, eventually

RUN = PlannedRun(
    run_id="witness-0", agent="witness", name="witness", fingerprint="f", trainer="pod-1", state="to train",
    rehearsal=False, recipe={}, recipe_sha256="r", axolotl="0.21.0", datasets=(), hosts=("pod-1",),
)  # fmt: skip
DONE = {"step": 3, "planned": 12, "loss": "nan", "eval_loss": 1.25}
DETAIL = "it said {{ lookup('env', 'HOME') }} & <b> «\"quoted\"»"


@pytest.fixture
def hook() -> Iterator[Hook]:
    with serving() as server:
        yield server


@pytest.fixture
def tell(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tell of a failure; return the warnings, in which the address never is."""
    monkeypatch.setattr(webhook, "_DELAY", 0.01)
    monkeypatch.setattr(notify.constants, "DEFAULT_LOCAL_TMP", str(tmp_path))

    def play(url: str, event: str = "failed", **changes: Any) -> list[str]:
        options = {"output": str(tmp_path), "url": url, "form": "auto", "timeout": 60, "pods": "",
                   "events": ["finished", "decision", "failed", "stalled", "over_budget"]}  # fmt: skip
        more = {key: changes.pop(key) for key in ("since", "silent") if key in changes}
        notify.notify(event, RUN, DETAIL, options | changes, DONE, **more)
        text = capsys.readouterr()
        assert SECRET not in text.out + text.err
        return [line.strip() for line in (text.out + text.err).splitlines() if "!" in line]

    return play


def test_json_after_an_error_of_the_server(hook: Hook, tell: Any, tmp_path: pathlib.Path) -> None:
    hook.answers = [503, 200]
    asked = time.time() - 3600 * 2.5  # two and a half dollars for it and for another one that is not delivered either
    ordered = Claims(tmp_path / "pods").open_claim(
        "pod-1", ["witness-0", "mayor-0"], asked, pod_id="p1", asked_at=asked, usd_per_hour=2.0
    )
    assert ordered
    began = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    assert tell(hook.url, pods=str(tmp_path / "pods")) == []
    first, second = hook.told
    message = dict(second)
    assert first["id"] == message.pop("id"), "which is the same message"
    assert began <= datetime.datetime.fromisoformat(message.pop("at")) <= datetime.datetime.now(datetime.timezone.utc)
    assert 2.5 <= message.pop("cost_usd") < 3
    assert message == {
        "event": "failed", "agent": "witness", "run_id": "witness-0", "trainer": "pod-1", "detail": DETAIL, "step": 3,
        "planned": 12, "loss": "nan", "eval_loss": 1.25, "url": None,
    }  # fmt: skip
    assert first["detail"] == DETAIL


def test_slack_is_known_by_its_host(hook: Hook, tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{hook.server_port}")
    assert tell(f"http://hooks.slack.com/services/{SECRET}") == []
    assert hook.paths == [f"http://hooks.slack.com/services/{SECRET}"]
    head, detail = hook.told[0].pop("text").splitlines()
    assert hook.told == [{}]
    assert head == "witness failed: witness-0 on pod-1, step 3/12, loss nan, eval 1.25"
    assert detail == DETAIL.replace("&", "&amp;").replace("<b>", "&lt;b&gt;")


@pytest.mark.parametrize(
    ("status", "words", "asked"),
    [
        (404, "answered with status 404", 1), (302, "answered with status 302", 1),
        (500, "answered with status 500", 4), (429, "answered with status 429", 4),
        (0, "did not answer within 1 s", 1),
    ],
)  # fmt: skip
def test_what_does_not_arrive_is_a_warning(hook: Hook, tell: Any, status: int, words: str, asked: int) -> None:
    url = f"{hook.url}/{status}"
    warning = f"! «witness: failed» was not sent: the address in run_notify_url {words}"
    assert tell(url, timeout=60 if status else 1) == [warning]
    assert len(hook.paths) == asked


@pytest.mark.parametrize("url", [f"no-url-{SECRET}", f"http://[{SECRET}", f"gopher://{SECRET}/"])
def test_what_is_no_address_is_a_warning(tell: Any, url: str) -> None:
    assert tell(url) == ["! «witness: failed» was not sent: the address in run_notify_url cannot be reached"]


def test_an_address_where_nobody_listens_is_a_warning(tell: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, and nobody listens
        warned = tell(f"http://127.0.0.1:{free.getsockname()[1]}/{SECRET}")
    assert warned == ["! «witness: failed» was not sent: the address in run_notify_url cannot be reached"]


def test_an_answer_that_comes_a_byte_at_a_time_is_not_waited_for(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_SPARE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                for byte in b"HTTP/1.1 200 " * 100:
                    try:
                        connection.send(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.5)

        threading.Thread(target=drip, daemon=True).start()
        warned = tell(f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}", timeout=1)
    assert warned == ["! «witness: failed» was not sent: the address in run_notify_url did not answer within 1 s"]


@pytest.mark.parametrize("changes", [{"url": " "}, {"events": ["finished"]}, {"silent": True}])
def test_nobody_is_told_and_it_is_settled_all_the_same(
    hook: Hook, tell: Any, tmp_path: pathlib.Path, changes: dict[str, Any]
) -> None:
    assert tell(changes.pop("url", hook.url), **changes) == []
    assert hook.told == []
    assert read_record(tmp_path, "witness-0").is_settled("failed")


def test_what_cannot_be_noted_is_told_all_the_same(hook: Hook, tell: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    [warning] = tell(hook.url, since=0.0)
    assert warning.startswith("! what became of witness-0 could not be noted: ")
    assert len(hook.told) == 1


def test_a_message_that_cannot_be_made_is_a_warning(hook: Hook, tell: Any) -> None:
    warning = "! «witness: failed» was not told: the message could not be made (ValueError)"
    assert tell(hook.url, timeout=f"soon {SECRET}") == [warning]
    assert hook.told == []


def test_a_clock_that_was_set_back_after_the_plan_makes_no_second_message(
    hook: Hook, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_at = round(time.time()) + 3600.0
    monkeypatch.setattr(sys.modules[__name__], "RUN", dataclasses.replace(RUN, planned_at=planned_at))
    for _ in range(2):
        tell(hook.url, since=planned_at)
    assert len(hook.told) == 1


def test_what_a_command_died_of_is_told_again_by_its_id_until_somebody_has_told_it(
    hook: Hook, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> str:
        raise KeyboardInterrupt

    def arrives_and_dies(*given: Any) -> str:
        webhook.post(*given)
        return dies()

    with monkeypatch.context() as patched:
        patched.setattr(notify, "post", arrives_and_dies)
        with pytest.raises(KeyboardInterrupt):
            tell(hook.url, since=0.0)
        patched.setattr(notify, "post", dies)
        with pytest.raises(KeyboardInterrupt):
            tell(hook.url, silent=True)  # what is no news to this command
    for _ in range(2):
        tell(hook.url, silent=True)
        tell(hook.url, since=0.0)
    assert len(hook.told) == 2
    assert len({message["id"] for message in hook.told}) == 1
    tell(hook.url)
    assert len({message["id"] for message in hook.told}) == 2, "another failure is another message"


def test_of_two_commands_one_tells_and_the_other_waits_until_it_has(
    hook: Hook, tell: Any, tmp_path: pathlib.Path
) -> None:
    hook.answers = [0, 200]
    first = threading.Thread(target=tell, args=(hook.url,), kwargs={"since": 0.0})
    first.start()
    eventually(lambda: hook.told)
    second = threading.Thread(target=tell, args=(hook.url,), kwargs={"since": 0.0})
    second.start()
    hook.over.set()
    for thread in (first, second):
        thread.join()
    assert len(hook.told) == 1
    assert read_record(tmp_path, "witness-0").is_settled("failed")


@pytest.fixture
def one_that_does_not_end(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have another command in its turn to tell of the run, for longer than anybody waits."""
    monkeypatch.setattr(notify, "SOON", 0.0)
    monkeypatch.setattr(notify, "PATIENCE", 0.0)
    monkeypatch.setattr(notify, "longest", lambda timeout: 0.0)
    (tmp_path / "runs").mkdir()
    with rundir.locked(tmp_path / "runs/.witness-0.told.lock"):
        yield


@pytest.mark.usefixtures("one_that_does_not_end")
def test_what_another_command_keeps_back_is_told_beside_it_and_it_is_said(
    hook: Hook, tell: Any, tmp_path: pathlib.Path
) -> None:
    warned = tell(hook.url, since=0.0)
    assert [message["event"] for message in hook.told] == ["failed"]
    assert warned == [
        "! «witness: failed» may arrive twice: another command has begun to tell of witness-0 and does not end, so "
        "that this one told too"
    ]
    assert tell(hook.url, since=0.0) == [], "and that is all"
    assert len(hook.told) == 1
    assert read_record(tmp_path, "witness-0").is_settled("failed")


@pytest.mark.usefixtures("one_that_does_not_end")
def test_what_it_was_about_to_tell_itself_has_the_id_that_it_noted(
    hook: Hook, tell: Any, tmp_path: pathlib.Path
) -> None:
    update_record(tmp_path, "witness-0", lambda record, now: record.tells("failed", "its-own"))
    tell(hook.url, silent=True)  # to this command it is no news, and who knows whether the other one sends it
    assert [message["id"] for message in hook.told] == ["its-own"]
    assert tell(hook.url, "stalled", silent=True) == [], "of what nobody has begun to tell nothing is kept back"
    assert len(hook.told) == 1


@pytest.mark.usefixtures("one_that_does_not_end")
def test_another_command_is_waited_for_once_and_not_for_each_event(
    hook: Hook, tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, locked = list[float](), rundir.locked

    def spied(path: pathlib.Path, timeout: float | None = None) -> Any:
        waits.extend([timeout or 0.0] if path.name.endswith(".told.lock") else [])
        return locked(path, timeout)

    monkeypatch.setattr(rundir, "locked", spied)
    monkeypatch.setattr(notify, "PATIENCE", 0.01)
    told = [tell(hook.url, event, since=0.0) for event in ("failed", "stalled", "decision")]
    assert ["may arrive twice" in warned for (warned,) in told] == [True] * 3
    assert waits == [0.0, 0.01, 0.0, 0.0]
    assert [message["event"] for message in hook.told] == ["failed", "stalled", "decision"]


def test_an_attempt_that_may_take_long_is_waited_for_as_long() -> None:
    assert webhook.longest(10) < notify.PATIENCE < webhook.longest(300)


def test_that_somebody_has_to_decide_is_told_once_with_the_command(hook: Hook, tell: Any) -> None:
    for _ in range(2):
        tell(hook.url, "decision", since=0.0)
    assert [(message["event"], message["run_id"], message["detail"]) for message in hook.told] == [
        ("decision", "witness-0", DETAIL)
    ]


def test_an_event_is_told_once_since_a_time(hook: Hook, tell: Any) -> None:
    for _ in range(2):
        tell(hook.url, since=0.0)
    assert len(hook.told) == 1
    tell(hook.url, since=time.time() + 1)  # a later command, for which it is news
    tell(hook.url)
    assert len(hook.told) == 3


def test_what_is_told_of_a_lost_trainer_goes_where_its_own_settings_say(hook: Hook, tmp_path: pathlib.Path) -> None:
    hosts = {"gpu": {"run_notify_url": f"{hook.url}/its-own", "run_notify_on": ["failed"]}, "other": {}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    lost = [
        {
            "name": name,
            "ansible.builtin.include_role": {"name": str(ROOT / "roles/run"), "tasks_from": "failed"},
            "vars": {
                "run_failed_runs": [
                    dataclasses.replace(RUN, run_id=f"witness-{name}", trainer=name, hosts=(name,)).as_dict()
                ],
                "run_failed_host": name,
                "run_failed_whole_trainer": True,
                "run_failure": {"msg": f"{name} was lost on the way"},
                "run_output": str(tmp_path / "output"),
            },
        }
        for name in ("gpu", "other", "gone")
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": lost}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")],
        cwd=ROOT, env={**os.environ, "LORA_FORGE_NOTIFY_URL": f"{hook.url}/this-machine's"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = [(path.rpartition("/")[2], message["run_id"]) for path, message in zip(hook.paths, hook.told)]
    here = "this-machine's"
    assert told == [("its-own", "witness-gpu"), (here, "witness-other"), (here, "witness-gone")]
