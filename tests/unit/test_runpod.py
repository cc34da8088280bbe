"""The client of RunPod's API: every request that goes out, and every kind of answer that may come back."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import runpod
from ansible.module_utils.lora_forge.pods.runpod import ApiError, NoAnswer, RunPod
from wire import KEY, Wire, answer, bills_shown, gpu, pod_shown, problem, volume_shown, wrong

ORDER = {"name": "pod", "image": "i", "gpu": {"id": "NVIDIA L40S", "count": 1}}
DROPPED = NoAnswer("connection reset by peer")
NONE = answer(200, {"pods": []})
MADE = answer(201, pod_shown("a1"))
HTML = "a proxy's page, in the place of RunPod's answer"
FORM = "a client must not take an answer of another form for a good one"
LOG = "/v2/pods/a1/logs?source=container&tail=1000"
OUT = "RunPod is out of order, or cannot be reached; run the same command again in a while"


def refused(wire: Wire, method: str = "POST") -> str:
    """Return what a user reads when an order, a list or a deletion is refused."""
    calls = {
        "POST": lambda: wire.api.create_pod(ORDER),
        "GET": wire.api.list_pods,
        "DELETE": lambda: wire.api.delete_pod("a1"),
    }
    with pytest.raises(ApiError) as caught:
        calls[method]()
    assert KEY not in str(caught.value)
    return str(caught.value)


# --- what goes out -------------------------------------------------------------------------------------------------


def test_a_request_has_the_key_an_agent_of_its_own_and_a_time_limit():
    with Wire(("GET /v2/pods", NONE), ("POST /v2/pods", MADE, ORDER)) as wire:
        wire.api.list_pods()
        wire.api.create_pod(ORDER)
    look, order = wire.sent
    assert look["headers"] == {
        "Authorization": f"Bearer {KEY}", "User-Agent": runpod.AGENT, "Accept": "application/json",
    }  # fmt: skip
    assert "urllib" not in runpod.AGENT.lower()
    assert (look["body"], look["seconds"], look["stream"]) == (None, runpod.TIMEOUT, False)
    assert order["headers"] == look["headers"] | {"Content-Type": "application/json"}


def test_the_other_requests():
    gpus = "GET /v2/catalog/gpus?include=AVAILABILITY&product=POD&cloud=COMMUNITY&count=2"
    with Wire(
        ("DELETE /v2/pods/a%2F1", answer(204)),
        ("DELETE /v2/pods/a1", problem(404, "pod not found")),
        ("POST /v2/pods/a1/action", answer(200, pod_shown("a1", status="EXITED")), {"action": "stop"}),
        (gpus, answer(200, {"gpus": [gpu("A40", 0.44)]})),
        (f"{gpus}&minCudaVersion=13.0", answer(200, {"gpus": [gpu("H200", 3.59)]})),
        ("GET /v2/network-volumes/v1", answer(200, volume_shown("v1"))),
    ) as wire:
        assert wire.api.delete_pod("a/1") is True
        assert wire.api.delete_pod("a1") is False
        assert wire.api.stop_pod("a1") is None
        assert [entry["price"]["secure"] for entry in wire.api.list_gpus("COMMUNITY", 2)] == [0.44]
        assert [entry["id"] for entry in wire.api.list_gpus("COMMUNITY", 2, "13.0")] == ["NVIDIA H200"]
        assert wire.api.get_volume("v1").items() <= volume_shown("v1").items()


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("", True), ("https://api.example.org/", True), ("http://127.0.0.1:8080", True), ("http://localhost:1", True),
        ("http://[::1]:1", True), ("http://api.runpod.io", False), ("api.runpod.io", False),
        ("ftp://example.org", False),
        ("http://127.0.0.1.example.org", False), ("http://127.9.9.9", True),
    ],
)  # fmt: skip
def test_the_key_goes_out_in_clear_to_this_machine_only(url, fine):
    if fine:
        assert RunPod(KEY, url).url == (url or "https://api.runpod.io").rstrip("/")
        return
    with pytest.raises(UserError) as caught:
        RunPod(KEY, url)
    assert str(caught.value) == f"RUNPOD_API_URL is «{url}»: the key would go over the network in clear. Use https"


@pytest.mark.parametrize(
    "url",
    [
        "https://", "https:///v2", "https://api example.org", "https://api.example.org/a b", "http://[::1", "https://[",
        "https://api.example.org:port", "https://api.example.org:99999", "https://api.example.org?key=1", "https://-o",
        "https://api.example.org/#x", "https://api.exämple.org", "https://a\n.example.org",
    ],
)  # fmt: skip
def test_what_is_no_address_is_told_in_a_line(url):
    with pytest.raises(UserError) as caught:
        RunPod(KEY, url)
    message = str(caught.value)
    assert message.startswith("RUNPOD_API_URL is «")
    assert message.endswith("», which is no address. Write https:// and a host")
    assert "\n" not in message


@pytest.mark.parametrize("url", ["https://ann:hush@api.example.org", "http://localhost@example.org", "https://@a.org"])
def test_an_address_with_a_password_is_told_without_it(url):
    with pytest.raises(
        UserError, match=r"^RUNPOD_API_URL holds a user or a password\. Write https:// and a host alone$"
    ):
        RunPod(KEY, url)


def test_a_real_accounts_key_is_not_sent_to_a_simulator():
    real = "rpa_" + "A1B2C3D4" * 5
    with pytest.raises(
        UserError, match=r"a simulator, and RUNPOD_API_KEY looks like a real account's.*Nothing was sent"
    ):
        RunPod(real, "http://127.0.0.1:8080")
    assert RunPod(real).url == "https://api.runpod.io"
    assert RunPod("simulated-key", "http://127.0.0.1:8080").key == "simulated-key"


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_without_a_key_it_says_where_to_get_one(key):
    with pytest.raises(UserError) as caught:
        RunPod(key)
    assert str(caught.value) == (
        "RUNPOD_API_KEY is not set. Make a key with read and write access in RunPod's console (Settings, API keys), "
        "and: export RUNPOD_API_KEY=…"
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_the_end_of_a_line_is_no_part_of_the_key(end):
    with pytest.raises(UserError, match=r"no answer"):
        RunPod(KEY + end, "http://127.0.0.1:9", sleep=lambda seconds: None).list_pods()


@pytest.mark.parametrize("key", ["rpa_1\nrpa_2", "rpa 1", "rpa_1\t2", "rpa_1…"])
def test_a_key_that_cannot_be_sent_is_told_and_not_shown(key):
    with pytest.raises(UserError, match=r"RUNPOD_API_KEY holds .* copy it anew") as caught:
        RunPod(key, "http://127.0.0.1:9", sleep=lambda seconds: None).list_pods()
    assert "rpa" not in str(caught.value)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Title 400: why. RunPod cannot carry this out; its message says why"),
        (401, "Title 401: why. RUNPOD_API_KEY is not accepted; make a new key in RunPod's console (Settings, API "
              "keys)"),
        (402, "Title 402: why. The balance is too low; add credit in RunPod's console (an hour's price is needed to "
              "start)"),
        (403, "Title 403: why. The key may not do this; give it read and write access, or leave this pool of GPUs out"),
        (404, "Title 404: why. It is not there, or it belongs to another account"),
        (409, "Title 409: why. Its state does not allow this now; look at it again"),
        (500, f"Title 500: why. {OUT}"),
        (503, f"Title 503: why. {OUT}"),
    ],
)  # fmt: skip
def test_a_refused_order_is_made_once_and_told_with_the_way_out(status, words):
    with Wire(("POST /v2/pods", problem(status, "why"))) as wire:
        assert refused(wire) == f"RunPod, POST /v2/pods: {status} {words}"
    assert wire.slept == []


def test_a_full_stop_of_runpods_own_is_not_doubled():
    with Wire(("POST /v2/pods", problem(404, "pod not found."))) as wire:
        assert "404 Title 404: pod not found. It is not there" in refused(wire)


def test_every_violation_of_a_422_is_told():
    with Wire(("POST /v2/pods", problem(422, "invalid body", ("$.disk: too small", "$: 'x' not allowed")))) as wire:
        assert refused(wire) == (
            "RunPod, POST /v2/pods: 422 Title 422: invalid body; $.disk: too small; $: 'x' not allowed. "
            "This version does not fit RunPod's API; nothing was ordered"
        )


@pytest.mark.parametrize(
    ("after", "slept"),
    [
        ("7", [7.0]),
        ("0", [0.0]),
        ("60", [60.0]),
        ("", [1.0]),
        ("soon", [1.0]),
        ("-5", [1.0]),
        ("1.5", [1.5]),
        ("inf", [1.0]),
        ("nan", [1.0]),
        ("²", [1.0]),
        ("1e9", [1.0]),
        ("7, 7", [1.0]),
        ("0x10", [1.0]),
        ("Mon, 01 Jan 0001 00:00:00 -0000", [0.0]),
        ("Sun, 06 Nov 1994 08:49:37 GMT", [0.0]),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_429_is_repeated_when_it_says_so(method, after, slept):
    good = {"POST": MADE, "GET": NONE}[method]
    headers = {"retry_after": after} if after else {}
    with Wire((f"{method} /v2/pods", problem(429, "slow down", **headers)), (f"{method} /v2/pods", good)) as wire:
        wire.api.create_pod(ORDER) if method == "POST" else wire.api.list_pods()
    assert wire.slept == slept


@pytest.mark.parametrize(("ahead", "least"), [(30, 25), (-30, 0)])
def test_a_429_may_name_a_date(ahead, least):
    date = email.utils.format_datetime(email.utils.parsedate_to_datetime(email.utils.formatdate(time.time() + ahead)))
    with Wire(("GET /v2/pods", problem(429, "", retry_after=date)), ("GET /v2/pods", NONE)) as wire:
        wire.api.list_pods()
    assert least <= wire.slept[0] <= max(0, ahead)


def test_a_429_that_asks_for_too_long_or_does_not_end_is_told():
    for long in ("61", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"):
        with Wire(("POST /v2/pods", problem(429, "slow down", retry_after=long))) as wire:
            assert refused(wire).endswith("slow down. Too many requests; wait a minute and run the same command again")
        assert wire.slept == []
    with Wire(*[("POST /v2/pods", problem(429, "slow down"))] * runpod.ATTEMPTS) as wire:
        refused(wire)
    assert wire.slept == [1, 2, 4]


@pytest.mark.parametrize("trouble", [problem(500, "oops"), problem(503, "oops"), DROPPED, answer(502, b"<html>")])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_may_be_repeated_is_repeated_with_growing_pauses(method, trouble):
    asked, good = {"GET": ("GET /v2/pods", NONE), "DELETE": ("DELETE /v2/pods/a1", answer(204))}[method]
    with Wire(*[(asked, trouble)] * 3, (asked, good)) as wire:
        wire.api.list_pods() if method == "GET" else wire.api.delete_pod("a1")
    assert wire.slept == [1, 2, 4]
    with Wire(*[(asked, trouble)] * 4) as wire:
        assert refused(wire, method).endswith(OUT)


@pytest.mark.parametrize(
    ("reply", "unclear"),
    [
        (problem(500, "oops"), True), (answer(504, b""), True), (DROPPED, True),
        (wrong(answer(200, b"<html>hi"), HTML), True), (wrong(answer(201, {"no": "id"}), FORM), True),
        (wrong(answer(201, [1]), FORM), True), (wrong(answer(201), FORM), True), (problem(400, ""), False),
        (problem(402, ""), False), (problem(409, ""), False), (problem(422, ""), False),
    ],
)  # fmt: skip
def test_an_order_is_never_repeated_and_says_whether_it_may_have_been_carried_out(reply, unclear):
    with Wire(("POST /v2/pods", reply)) as wire, pytest.raises(ApiError) as caught:
        wire.api.create_pod(ORDER)
    assert caught.value.unclear is unclear
    assert wire.slept == []


# --- answers of other forms ----------------------------------------------------------------------------------------


def test_a_dropped_connection_and_pages_of_html_are_told_in_a_line():
    page = b"<html>\n <h1>Bad   gateway</h1>" + b"x" * 500
    with Wire(*[("GET /v2/pods", answer(502, page))] * 4) as wire:
        message = refused(wire, "GET")
    assert message.startswith("RunPod, GET /v2/pods: 502 Bad Gateway: <html> <h1>Bad gateway</h1>xxx")
    assert "\n" not in message
    assert len(message) < 330
    with Wire(*[("GET /v2/pods", DROPPED)] * 4) as wire:
        assert refused(wire, "GET") == f"RunPod, GET /v2/pods: no answer: connection reset by peer. {OUT}"
    with Wire(("GET /v2/pods", wrong(answer(200, b"<html>Just a moment"), HTML))) as wire:
        assert refused(wire, "GET") == f"RunPod, GET /v2/pods: no JSON: <html>Just a moment. {OUT}"


@pytest.mark.parametrize("body", [{}, {"pods": None}, {"pods": {}}, [], "no", {"data": []}, None])
def test_a_list_of_another_form_is_an_error_and_not_an_empty_list(body):
    with Wire(("GET /v2/pods", wrong(answer(200, body), FORM))) as wire:
        assert "an answer of another form: it holds no list «pods»" in refused(wire, "GET")


@pytest.mark.parametrize(
    ("path", "body", "ask"),
    [
        ("/v2/pods", {"pods": ["a1"]}, lambda api: api.list_pods()),
        ("/v2/pods", {"pods": [{"name": "without an id"}]}, lambda api: api.list_pods()),
        ("/v2/billing/pods?podId=a1&bucketSize=hour", [1], lambda api: api.billed_usd("a1")),
        ("/v2/billing/pods?podId=a1&bucketSize=hour", {"records": [{}]}, lambda api: api.billed_usd("a1")),
        ("/v2/pods/a1", [1], lambda api: api.get_pod("a1")),
    ],
)
def test_other_answers_of_another_form_are_errors_of_ours(path, body, ask):
    with Wire((f"GET {path}", wrong(answer(200, body), FORM))) as wire, pytest.raises(ApiError):
        ask(wire.api)


def page(names: str, **pagination: Any) -> runpod.Answer:
    return answer(
        200, {"pods": [pod_shown(name) for name in names], **({"pagination": pagination} if pagination else {})}
    )


@pytest.mark.parametrize(
    ("pages", "ids"),
    [
        ([("", page("ab"))], "ab"),
        ([("", page("ab", hasNextPage=False, nextCursor=None))], "ab"),
        (
            [("", page("ab", hasNextPage=True, nextCursor="x=1")), ("?cursor=x%3D1", page("c", hasNextPage=False))],
            "abc",
        ),
        ([("", page("a", hasNextPage=True, nextCursor="x")), ("?cursor=x", page("b"))], "ab"),
    ],
)
def test_lists_come_whole_or_page_by_page(pages, ids):
    with Wire(*[(f"GET /v2/pods{query}", reply) for query, reply in pages]) as wire:
        assert [pod["id"] for pod in wire.api.list_pods()] == list(ids)


def test_pages_that_overlap_give_every_pod_once():
    first, second = page("ab", hasNextPage=True, nextCursor="x"), page("bc", hasNextPage=False)
    with Wire(("GET /v2/pods", first), ("GET /v2/pods?cursor=x", second)) as wire:
        assert [pod["id"] for pod in wire.api.list_pods()] == ["a", "b", "c"]


@pytest.mark.parametrize("more", [{}, {"nextCursor": None}, {"nextCursor": ""}])
def test_a_list_that_goes_on_nobody_knows_where_is_an_error_and_not_the_whole(more):
    with Wire(("GET /v2/pods", page("ab", hasNextPage=True, **more))) as wire:
        assert "an answer of another form: there is more, and it does not say where. " in refused(wire, "GET")


def test_cursors_that_go_in_a_circle_end():
    def reply(cursor: str) -> runpod.Answer:
        return page("a", hasNextPage=True, nextCursor=cursor)

    again = [("GET /v2/pods?cursor=x", reply("y")), ("GET /v2/pods?cursor=y", reply("x"))]
    with Wire(("GET /v2/pods", reply("x")), *again) as wire:
        assert "an answer of another form: its pages go in a circle. " in refused(wire, "GET")


@pytest.mark.parametrize("flag", [{}, {"hasNextPage": False}, {"hasNextPage": None}])
def test_a_next_page_without_its_flag_is_an_error_and_not_the_end(flag):
    with Wire(("GET /v2/pods", page("ab", nextCursor="x", **flag))) as wire:
        assert "it names a next page, and does not say that there is one" in refused(wire, "GET")


@pytest.mark.parametrize("pagination", [{"hasNextPage": "no"}, {"nextCursor": 7, "hasNextPage": True}, "x", [1]])
def test_pages_of_another_form_are_an_error(pagination):
    with Wire(("GET /v2/pods", answer(200, {"pods": [pod_shown("a")], "pagination": pagination}))) as wire:
        assert "an answer of another form: pagination" in refused(wire, "GET")


def test_a_list_without_an_end_ends(monkeypatch):
    monkeypatch.setattr(runpod, "PAGES", 3)
    pages = [page("a", hasNextPage=True, nextCursor=str(number)) for number in range(3)]
    asked = ["GET /v2/pods", "GET /v2/pods?cursor=0", "GET /v2/pods?cursor=1"]
    with Wire(*zip(asked, pages)) as wire:
        assert "it has more than 3 pages" in refused(wire, "GET")


KNOWN = ("id", "name", "status", "cost", "image", "cloud", "dataCenterId", "cudaVersion", "gpu", "createdAt",
         "startedAt", "runtime")  # fmt: skip


def known(pod_id: str, deadline: float | None = None, **changes: Any) -> dict[str, Any]:
    """Make a pod as the client knows it: what is asked of it, without its environment."""
    shown = {name: pod_shown(pod_id, **changes)[name] for name in KNOWN}
    shown |= {"mounts": {"persistent": None, "network": []}, "ssh": {"direct": None}, "ssh_problem": ""}
    return shown | ({"deadline": deadline} if deadline else {})


@pytest.mark.parametrize(
    ("reply", "pod"),
    [
        (answer(200, pod_shown("a1")), known("a1")),
        (answer(200, pod_shown("a1", status="TERMINATED")), None),
        (problem(404, "not found"), None),
    ],
)
def test_a_pod_that_is_gone_is_none(reply, pod):
    with Wire(("GET /v2/pods/a1", reply)) as wire:
        assert wire.api.get_pod("a1") == pod


# --- pods, logs, bills ---------------------------------------------------------------------------------------------


def test_pods_come_without_their_environment_and_without_those_that_are_gone():
    env = {"RUNPOD_API_KEY": "rpa_2", "WANDB_API_KEY": "w", "LORA_FORGE_DEADLINE": "1764000000"}
    undated = pod_shown("c", env={"LORA_FORGE_DEADLINE": "never"})
    listed = [pod_shown("a", env=env), pod_shown("b", status="TERMINATED"), undated]
    without = wrong(answer(200, {"pods": [pod_shown("d", env=None)]}), "no environment at all is no reason to fail")
    with Wire(
        ("GET /v2/pods", answer(200, {"pods": listed})),
        ("GET /v2/pods", without),
        ("POST /v2/pods", answer(201, pod_shown("e", env=env))),
    ) as wire:
        assert wire.api.list_pods() == [known("a", deadline=1764000000.0), known("c")]
        assert wire.api.list_pods() == [known("d")]
        assert wire.api.create_pod(ORDER) == known("e", deadline=1764000000.0)


def test_a_log_is_read_as_far_as_it_is_there():
    text = b'id: 1\ndata: {"line":"one","source":"container"}\n\n: ping\ndata: {"other":1}\ndata: {"line":"tw'
    stream = answer(200, text, content_type="text/event-stream")
    with Wire((f"GET {LOG}", stream)) as wire:
        assert wire.api.read_log("a1") == ["one"]
    odd = 'data: {"line":"a\u2028b\u0085c\\r\\nd"}\rdata: {"line":7}\ndata: [1]\r\ndata: {"line":"two"}'
    with Wire((f"GET {LOG}", answer(200, odd.encode(), content_type="text/event-stream"))) as other:
        assert other.api.read_log("a1") == ["a\u2028b\u0085c\r\nd", "two"]
    assert (wire.sent[0]["stream"], wire.sent[0]["seconds"]) == (True, runpod.QUIET)


def test_a_bill_is_that_of_the_pod_alone():
    asked = "GET /v2/billing/pods?podId=a1&bucketSize=hour"
    bills = [("a1", 0.5), ("b", 9), ("a1", 1)]
    with Wire(*[(asked, answer(200, bills_shown(*bills[:number]))) for number in (0, 2, 3)]) as wire:
        assert [wire.api.billed_usd("a1") for _ in range(3)] == [None, 0.5, 1.5]


@pytest.mark.parametrize(
    "reply",
    [
        problem(400, f"Bearer {KEY} is bad", (f"key {KEY}",)), answer(400, f"<p>{KEY}</p>".encode()),
        NoAnswer(f"cannot send {KEY}"), wrong(answer(200, f"<p>{KEY}</p>".encode()), HTML),
        problem(400, "why", title=f"{KEY} is bad"), answer(400, b"x" * 150 + KEY.encode()),
    ],
)  # fmt: skip
def test_the_key_is_in_no_error(reply):
    with Wire(("POST /v2/pods", reply)) as wire:
        assert KEY[:8] not in refused(wire)
