"""What may be sent to somebody else: no key, nothing of the data, and what helps."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from ansible.module_utils.lora_forge.results import bundle, redaction
from ansible.module_utils.lora_forge.results.bundle import Part
from ansible.module_utils.lora_forge.results.redaction import QUOTATION, SECRET, Quotations, Redactor, Secrets

SAID = "Tell the café in Rue Oberkampf that bead gt-4711 is blocked"
HEAD = "[2026-11-23 11:37:39,123] [WARNING] [axolotl.utils.trainer:88] [PID:42] [RANK:0]"


def line(text: str = SAID, **how: bool) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}]}, **how).encode() + b"\n"


def redactor(*texts: str, data: list[bytes] | None = None, known: tuple[str, ...] = ()) -> Redactor:
    return Redactor(Secrets(known), Quotations(texts, [line()] if data is None else data))


# --- keys


@pytest.mark.parametrize(
    "text",
    [
        "hf_abcdefghijklmnopqrst", "rpa_ABCDEFGHIJKLMNOP", "0123456789abcdef0123456789abcdef01234567",
        "wandb_v1_abcdefghijklmnop", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "AKIAABCDEFGHIJKLMNOP",
        "github_pat_" + "a1_" * 20, "sk-abcdefghijklmnopqrstuvwxyz", "xoxb-abcdefghijklmnopqrstuvwxyz",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijk",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\nAAAABG5vbmUA\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA", "https://hooks.slack.com/services/T0/B0/abcdefg",
    ],
)  # fmt: skip
def test_what_looks_like_a_key_goes(text: str) -> None:
    assert Secrets().taken_out(f"before {text} behind").startswith(f"before {SECRET}")
    assert text.split("\n")[-1] not in Secrets().taken_out(f"before {text}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def", f"Authorization: {SECRET}"),
        ("{'authorization': 'Basic dXNlcjpw'}", f"{{'authorization': '{SECRET}'}}"),
        ("http://me:pass@proxy:3128/x", f"http://{SECRET}@proxy:3128/x"),
        ("GET /x?api_key=abc123&page=2", f"GET /x?api_key={SECRET}&page=2"),
        ("WANDB_API_KEY=abcdef123", f"WANDB_API_KEY={SECRET}"),
        ('"hub_token": "abcdef123"', f'"hub_token": "{SECRET}"'),
        ("password: correct-horse", f"password: {SECRET}"),
        ("ansible_become_pass=battery-staple", f"ansible_become_pass={SECRET}"),
    ],
)
def test_of_what_is_named_the_value_goes(text: str, shown: str) -> None:
    assert Secrets().taken_out(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "total_tokens: 12345678", "eos_token: <|endoftext|>", "tokenizer_config.json", "tokens_per_second=1500.25",
        "model_revision: 0123456789abcdef0123456789abcdef01234567",
        "models--Qwen/snapshots/0123456789abcdef0123456789abcdef01234567/config.json",
        "fingerprint 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "https://huggingface.co/Qwen/Qwen2.5-7B@main", "hf_transfer is not installed",
    ],
)  # fmt: skip
def test_what_is_none_stays(text: str) -> None:
    assert Secrets().taken_out(text) == text


def test_values_in_mappings_and_lists_are_known_by_any_name_on_the_way() -> None:
    known = redaction.known_secrets({
        "my_tokens": {"hub": "hub-of-mine", "others": [{"eu": "eu-of-mine"}, 1234567]},
        "services": [{"git": {"env": {"GIT_PASSWORD": "git-of-mine", "GIT_USER": "somebody"}}}],
        "limits": {"eos_tokens": ["endings"], "max_length": 4096000}, "off_token": {"a": True, "b": None},
    })  # fmt: skip
    assert known == {"hub-of-mine", "eu-of-mine", "1234567", "git-of-mine"}


def test_known_values_go_in_each_spelling() -> None:
    known = redaction.known_secrets({
        "MY_SECRET": 'a"b/c=d', "NOTIFY_URL": "https://x.example/hook/abcdefghijkl", "HOME": "/root",
        "SHORT_KEY": "abc",
        "KEY_FILE": "something", "ANSIBLE_PASSWORD": "~/path/to/file", "AWS_SECRET_ACCESS_KEY": "/wJalrXUtnFEMI/K7MD",
        "pod_env": {"ANY": "value-of-a-pod"},
        "ansible_become_pass": "battery-staple", "SSHPASS": "trombone-7", "SMTP_PASS": "umbrella-9",
        "bypass": "anything", "passes": "whatever",
    })  # fmt: skip
    secrets = Secrets(known)
    told = 'x a"b/c=d a%22b%2Fc%3Dd a\\"b/c=d /hook/abcdefghijkl value-of-a-pod abc /root something'
    assert secrets.taken_out(told) == f"x {' '.join([SECRET] * 5)} abc /root something"
    told = "battery-staple trombone-7 umbrella-9 /wJalrXUtnFEMI/K7MD anything whatever ~/path/to/file"
    assert secrets.taken_out(told) == f"{' '.join([SECRET] * 4)} anything whatever ~/path/to/file"


# --- the data


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        SAID,
        f"row 3 {SAID!r}",
        json.dumps(SAID),
        json.dumps(json.dumps(SAID)),
        SAID.upper(),
        SAID.replace(" ", "\\n"),
        "▁".join(SAID.split()),
        SAID[10:40],
        " ".join(f"{word} 12 34" for word in SAID.replace("gt-4711 ", "").split()),
    ],
)
def test_a_text_that_quotes_the_data_is_found(text: str, ascii_only: bool) -> None:
    assert Quotations([text], [line(ensure_ascii=ascii_only)]).quotes(text)


def test_what_is_said_everywhere_is_no_quotation() -> None:
    common = "[Errno 2] No such file or directory"
    texts = [common, "ModuleNotFoundError", "the café in Rue", "Loading the tokenizer"]
    found = Quotations(texts, [line(f"{SAID}. {common}: ModuleNotFoundError")])
    assert [text for text in texts if found.quotes(text)] == []


def test_letters_of_other_scripts_count_too() -> None:
    said = "请告诉炼油厂合并已经被阻止了"
    found = Quotations([said, "模型加载完成"], [line(said)])
    assert (found.quotes(said[2:9]), found.quotes("模型加载完成")) == (True, False)


def test_data_of_many_batches_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_BATCH", 100)
    data = [line(f"{number} others say something else") for number in range(50)]
    assert Quotations([SAID], [*data, line()]).quotes(SAID)
    assert not Quotations([SAID], data).quotes(SAID)


def test_where_the_data_cannot_be_read_only_what_is_short_stays() -> None:
    unknown = Quotations(["exit code 1", SAID], None)
    assert (unknown.quotes("exit code 1"), unknown.quotes(SAID)) == (False, True)


# --- kinds of lines

KEPT = [
    f"{HEAD} Total number of tokens: 1234",
    "[INFO|trainer.py:123] 2026-11-23 11:37:39,123 >> ***** Running training *****",
    "2026-11-23 11:37:39 trainer started, pid 42, from step 0",
    "WARNING:root:no GPU",
    "[rank0]:W1123 11:37:39.123000 42 torch/distributed/run.py:803] Setting OMP_NUM_THREADS",
    "wandb: W&B offline",
    "/opt/env/lib/python3.12/site-packages/torch/x.py:7: UserWarning: slow",
    "{'loss': 1.25, 'grad_norm': 'nan', 'learning_rate': 2e-04, 'epoch': 0.1}",
    "  5%|▌         | 1/20 [00:01<00:20,  1.05it/s]",
    "Tokenizing Prompts (num_proc=2): 100%|██████████| 20/20 [00:01<00:00, 15.05 examples/s]",
    "[rank0]: Traceback (most recent call last):",
    '[rank0]:   File "/home/me/x.py", line 7, in <module>',
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "KeyboardInterrupt",
    "Killed",
]


@pytest.mark.parametrize("text", KEPT)
def test_a_line_of_a_known_kind_stays(text: str) -> None:
    assert redactor(text).log(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "hello there", "user: hello", "<|im_start|>user", "Hello(12, 34) there(5, 6)", "{'loss': 1, 'said': 'x'}",
        "{'messages': [1]}", "    indented, and behind no frame", "hello 5%| said", "1. hello", "- hello",
    ],
)  # fmt: skip
def test_any_other_line_goes(text: str) -> None:
    assert redactor(text).log(f"{text}\n{text}\nKilled") == "« 2 lines of no known kind left out »\nKilled"


@pytest.mark.parametrize(
    "message",
    [
        SAID, "Hello(-100, 34) there(-100, 6)", "input_ids [1]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "<|im_start|>user hello", "{'role': 'user', 'content': 'hello'}",
    ],
)  # fmt: skip
def test_of_a_record_that_prints_data_the_head_stays(message: str) -> None:
    text = redactor(message).log(f"{HEAD} {message}")
    assert text.startswith(HEAD)
    assert text.endswith(QUOTATION)
    assert "hello" not in text.lower()


def test_an_error_keeps_its_class_its_frames_and_what_it_says_before_the_data() -> None:
    frames = """Traceback (most recent call last):
  File "/e/lib/python3.12/site-packages/axolotl/train.py", line 12, in train
    raise MyOwn(f"row {number}: {text}")
           ^^^^^^^^^^"""
    text = f"{frames}\nmy.own.Trouble: row 3: {SAID}\nand more of it: {SAID}"
    shown = f"{frames}\nmy.own.Trouble: row 3: {QUOTATION}\n« 1 line of no known kind left out »"
    assert redactor(text).log(text) == shown
    assert redactor(text).sentence(f"exit code 1: {text}") == f"exit code 1: {shown}"


def test_words_in_quotes_go_where_they_are_a_phrase() -> None:
    text = f"{HEAD} cannot use 'sdpa' for 'never heard of it' and don't try"
    assert redactor(text).log(text) == f"{HEAD} cannot use 'sdpa' for '…' and don't try"


def test_a_line_without_end_is_cut_and_costs_no_time() -> None:
    for text in ("'" * 500_000, "a.a-" * 100_000, "(1, 1)" * 80_000, "eyJ-" * 100_000, f"{HEAD} {': ' * 200_000}"):
        assert len(redactor(text).log(text)) < 5000


def test_data_as_json_has_it_keeps_its_form() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    given = {"step": 3, "said": SAID, "revision": commit, "key": commit, "special_tokens": {"pad_token": "<|pad|>"},
             "hub_token": "abc", "rows": [SAID, None, True], "env": {"API_KEY": "x"}}  # fmt: skip
    assert redactor(*bundle._texts(given)).data(given) == {
        "step": 3, "said": QUOTATION, "revision": commit, "key": SECRET, "special_tokens": {"pad_token": "<|pad|>"},
        "hub_token": SECRET, "rows": [QUOTATION, None, True], "env": {"API_KEY": SECRET},
    }  # fmt: skip


# --- the archive


def test_an_archive_says_what_is_in_it_and_what_is_missing() -> None:
    parts = [
        Part("status.json", "its state", "json", {"state": "failed"}),
        Part("train.log", "its log", "log", "Killed\n" * 100_000),
        Part("x.log", "nothing", "log", ""),
    ]
    files = bundle.compose(parts, [f"the GPU: {SAID}"], Secrets(), lambda: [line()], "witness-0 on gpu-1")
    assert list(files) == ["README.txt", "status.json", "train.log"]
    assert files["README.txt"].startswith("witness-0 on gpu-1\n\nstatus.json          its state\n")
    assert f"Missing:\n- the GPU: {QUOTATION}\n" in files["README.txt"]
    assert files["train.log"].startswith("« the beginning is cut »\n")
    assert len(files["train.log"].encode()) < bundle.LARGEST + 100
    with tarfile.open(fileobj=io.BytesIO(bundle.packed(files, "witness-0", 7.0))) as archive:
        assert archive.getnames() == [f"witness-0/{name}" for name in files]
        assert {(entry.mode, entry.uid, entry.mtime) for entry in archive} == {(0o600, 0, 7)}
