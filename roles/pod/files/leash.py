#!/usr/bin/env python3
"""End this rented pod at its deadline, whether anybody still watches it or not: ``python3 leash.py``.

It starts with the container, in a restart loop beside the image's own command. The controller may renew it and is
not needed for anything. At the deadline it asks the training for a checkpoint, waits, and has RunPod end the pod.

    LORA_FORGE_DEADLINE   epoch seconds; LORA_FORGE_ALLOWANCE: seconds from the order of the pod to that deadline
    LORA_FORGE_API        RunPod's address; LORA_FORGE_ROOT: the trainer's folder
    LORA_FORGE_LOG_KEY    the secret that seals what it says of host keys: sshd lets strangers write into this log
    RUNPOD_POD_ID, RUNPOD_API_KEY   set by RunPod; the key is good for this pod only and is told to nobody

    <root>/leash/<pod id>.json      the leash's own word; <root>/leash/<pod id>.renewed: a later deadline

Standard library only, Python 3.8 or newer. Small: it travels in an environment variable.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib
import json
import math
import os
import pathlib
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

# All in seconds.
TICK = 5.0  # between two looks at everything
BEAT = 30.0  # at most between two writes of the own word
STOP = 150.0  # for the trainings to write their checkpoints
GRACE = 120.0  # after that, for a controller to fetch them and to release the pod itself
RETRY = 60.0  # between two tries to end the pod, or to look it up
HUNG = 600.0  # without a whole step: a volume does not answer, and no file is waited for any longer


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key elsewhere, and make a GET, which ends nothing, look like a success."""

    def redirect_request(self, *args: Any) -> None:
        return None


def opener(bundle: str = "") -> urllib.request.OpenerDirector:
    """Make what asks RunPod; with a file of CA certificates in the place of those that Python knows."""
    if not bundle:
        return urllib.request.build_opener(NoRedirect)
    import ssl  # which an image's Python may lack

    context = ssl.create_default_context(cafile=bundle)
    return urllib.request.build_opener(NoRedirect, urllib.request.HTTPSHandler(context=context))


def bundles() -> Iterator[str]:
    """Name the files of CA certificates that an image may have although its Python does not know them."""
    for name in ("certifi", "pip._vendor.certifi"):
        with contextlib.suppress(Exception):
            yield importlib.import_module(name).where()
    yield from ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def seconds(value: Any) -> float:
    """Return a number of seconds, or an epoch before 2096; 0.0 for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if 0 < number < 4e9 else 0.0


def load(path: pathlib.Path) -> dict[str, Any]:
    """Read the object in a JSON file, or an empty one; raises OSError where the file cannot be read."""
    try:
        data = json.loads(path.read_text())
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def boot_id() -> str:
    """Return the name of this boot of the host."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def is_alive(noted: Any) -> bool:
    """Whether the process that rundir.identity noted is still there."""
    try:
        stat = pathlib.Path(f"/proc/{int(noted['pid'])}/stat").read_text(errors="replace")
        fields = stat.rpartition(")")[2].split()
        return fields[0] not in "ZX" and int(fields[19]) == noted["start"] and noted["boot"] == boot_id()
    except (OSError, LookupError, TypeError, ValueError):
        return False


class Leash:
    """One pod's leash; :meth:`step` is to be called every TICK seconds.

    Args:
        env: The variables above.
        ssh: The folder of sshd's host keys.
        wall: Tells epoch seconds, perhaps wrong ones.
        boot: Tells seconds since boot, sleep included, which nobody can set.
    """

    def __init__(self, env: Mapping[str, str], ssh: str, wall: Callable[[], float], boot: Callable[[], float]):
        self.wall, self.boot, self.ssh = wall, boot, pathlib.Path(ssh)
        named = {name: env.get(name, "").strip() for name in ("RUNPOD_POD_ID", "RUNPOD_API_KEY")}
        self.pod, self.key = named.values()
        self.log_key = env.get("LORA_FORGE_LOG_KEY", "").encode()
        self.lacking = ", ".join(f"{name} is not set" for name, value in named.items() if not value)
        self.api = (env.get("LORA_FORGE_API") or "https://api.runpod.io").rstrip("/")
        self.root = pathlib.Path(env.get("LORA_FORGE_ROOT") or "/workspace/lora-forge")
        self.own = self.root / "leash" / f"{self.pod or 'unknown'}.json"
        # Nobody means to set none. An hour then: a pod that ends too early is cheaper than one that never does.
        self.given = self.deadline = seconds(env.get("LORA_FORGE_DEADLINE")) or wall() + 3600
        self.ordered = self.given - (seconds(env.get("LORA_FORGE_ALLOWANCE")) or math.inf)
        self.first = self.stepped = boot()
        self.ahead = wall() - self.first  # of the boot clock, at the start
        self.since = self.quiet = math.inf  # when the stop began, and when no training was left, by the boot clock
        self.tried = self.written = -math.inf  # when RunPod was asked last, and the own word written
        self.accepted = False  # RunPod has agreed to end the pod: no way back
        self.state, self.word, self.announced, self.renewals = "waiting", "", 0.0, 0
        self.told: set[tuple[int, int]] = set()  # (pid, start ticks) of what was asked to stop
        self.keys: dict[pathlib.Path, str] = {}  # the host keys' fingerprints as shown
        self.last: dict[str, Any] = {}  # the own word as written, without its beat
        self.opener, self.bundles = opener(), bundles()
        self.status, self.answer = 0, ""  # what RunPod said of this pod, and when it was looked up last, how often
        self.looked, self.looks = -math.inf, 0

    def say(self, text: str) -> None:
        """One line for the container's log; in ASCII, so that no encoding loses it."""
        with contextlib.suppress(OSError, ValueError):
            print("lora-forge " + text.encode("ascii", "backslashreplace").decode(), flush=True)

    def late(self) -> float:
        """Seconds behind the deadline in force. A clock that is set, forward or back, changes nothing."""
        if self.ordered == -math.inf:
            return self.wall() - self.deadline
        by_boot = self.boot() - self.first - (self.deadline - self.ordered)
        return max(min(self.wall(), self.ahead + self.boot()) - self.deadline, by_boot)

    def remember(self) -> None:
        """Go on with the clocks of an earlier start in this boot of the host."""
        with contextlib.suppress(OSError, LookupError, TypeError, ValueError):
            boot, first, ahead = load(self.own)["clocks"]
            if boot == boot_id() and 0 <= first <= self.first:
                self.first, self.ahead = float(first), float(ahead)

    def step(self) -> None:
        """Look at everything once, and do what is due."""
        self.show_host_keys()
        if not self.last:
            self.remember()
        self.read_renewal()
        due = self.accepted or self.late() >= 0
        if not due and self.state != "waiting":
            self.state, self.since, self.quiet, self.announced = "waiting", math.inf, math.inf, 0.0
            self.told.clear()
        if self.deadline != self.announced and not self.accepted:
            self.announced = self.deadline
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.deadline))
            self.word = f"this pod ends itself at {when} unless it is renewed"
            if self.lacking:
                self.word = f"NO LEASH: {self.lacking}: the training is stopped at {when}, the pod is not ended"
            self.say(f"leash: {self.word}")
        if due and self.state in ("waiting", "stopping"):
            self.stop()
        if self.state in ("ending", "refused") and self.boot() - self.tried >= RETRY:
            self.write()  # before the pod is gone
            self.end()
        self.write()
        self.look_up()
        self.stepped = self.boot()

    def look_up(self) -> None:
        """See whether RunPod shows this pod: what cannot even be read could not be ended."""
        pause = RETRY if self.looks < 10 else HUNG
        if self.state == "waiting" and not self.lacking and not self.known() and self.boot() - self.looked >= pause:
            self.looked, self.looks, before = self.boot(), self.looks + 1, self.answer
            self.status, self.answer = self.call("GET", self.url(), None)
            if not self.known() and self.answer != before:
                self.say(f"leash: RunPod does not show this pod: {self.answer}")
            self.write()

    def known(self) -> bool:
        """Whether RunPod has shown this pod."""
        return 200 <= self.status < 300

    def url(self) -> str:
        """Return the address of this pod."""
        return f"{self.api}/v2/pods/{urllib.parse.quote(self.pod, safe='')}"

    def show_host_keys(self) -> None:
        """Print the fingerprints of sshd's host keys, as ssh-keygen -lf does, sealed, where they are new or others."""
        for path in sorted(self.ssh.glob("ssh_host_*_key.pub")):
            try:
                text = path.read_text()
                kind, blob = text.split()[:2]
                digest = base64.b64encode(hashlib.sha256(base64.b64decode(blob, validate=True)).digest())
            except (OSError, ValueError):
                continue
            shown = f"SHA256:{digest.decode().rstrip('=')} ({kind})"
            if text.endswith("\n") and self.keys.get(path) != shown:  # without its end, it is still being written
                self.keys[path] = shown
                seal = hmac.new(self.log_key, shown.encode(), hashlib.sha256).hexdigest() if self.log_key else ""
                self.say(f"host key {shown} {seal}".rstrip())

    def read_renewal(self) -> None:
        """Take the controller's deadline where there is a valid one, the order's otherwise."""
        try:
            renewed = seconds(load(self.own.with_suffix(".renewed")).get("deadline"))
        except FileNotFoundError:
            renewed = 0.0
        except OSError:
            return  # the volume has a hiccup, which takes no renewal back
        self.renewals += bool(renewed) and renewed != self.deadline
        self.deadline = renewed or self.given

    def stop(self) -> None:
        """Ask the trainings to stop; when they have, or after STOP, and when a controller had its GRACE, go on."""
        now = self.boot()
        self.since = min(self.since, now)
        if not self.ask() or now - self.since >= STOP:
            self.quiet = min(self.quiet, now)
        self.word = f"the deadline is reached; trainings asked for a checkpoint: {len(self.told)}"
        if self.state == "waiting":
            self.say(f"leash: {self.word}")
        self.state = "stopping"
        if now - self.quiet >= (GRACE if self.told else 0):
            self.state, self.word = "ending", "RunPod is asked to end this pod"

    def ask(self) -> bool:
        """Ask every living run, once, for a checkpoint and its end; returns whether any lives."""
        living = False
        for path in self.root.glob("runs/*/status.json"):
            try:
                status = load(path)
            except OSError:
                continue
            # A trainer alone has lost its supervisor.
            noted = next(filter(is_alive, (status.get("supervisor"), status.get("trainer"))), None)
            if noted is not None:
                living = True
                if (noted["pid"], noted["start"]) not in self.told:
                    self.told.add((noted["pid"], noted["start"]))
                    with contextlib.suppress(OSError):  # a full disk
                        (path.parent / "stop").touch()  # stopped on request: it does not start again by itself
                    with contextlib.suppress(OSError):
                        os.kill(int(noted["pid"]), signal.SIGTERM)
        return living

    def end(self) -> None:
        """Have RunPod end this pod, and say loudly when it does not."""
        self.tried, again = self.boot(), self.accepted
        pod, answers = self.url(), [self.lacking]
        calls = (("POST", f"{pod}/action", b'{"action":"terminate"}'), ("DELETE", pod, None))
        for method, url, body in () if self.lacking else calls:
            status, said = self.call(method, url, body)
            answers.append(said)
            self.accepted |= 200 <= status < 300 or status == 404
            if self.accepted and not again:
                self.state, self.word = "ending", f"RunPod ends this pod ({said})"
                self.say(f"leash: {self.word}")
                return
        answers.append("and yet it is still there" if again else "")  # whatever was answered RETRY ago
        why = ", ".join(filter(None, dict.fromkeys(answers)))
        self.state = "refused"
        self.word = f"COULD NOT END THIS POD ({why}): it goes on costing money. Release it by hand"
        self.say(f"leash: {self.word}")

    def call(self, method: str, url: str, body: Optional[bytes]) -> tuple[int, str]:
        """Ask RunPod; returns the HTTP status (0 without an answer), and it in words, never with the key."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        headers["User-Agent"] = "lora-forge-leash"  # urllib's own is refused
        try:
            request = urllib.request.Request(url, body, headers, method=method)
            with self.opener.open(request, timeout=30) as answer:
                status, title = answer.status, answer.reason
        except urllib.error.HTTPError as error:
            status, title = error.code, error.reason
            with error, contextlib.suppress(Exception):
                title = json.loads(error.read(65536))["title"]
        except Exception as error:  # whatever it is, there is another try; its text may hold the headers
            reason = getattr(error, "reason", "")
            if type(reason).__name__ == "SSLCertVerificationError" and self.trust_others():
                return self.call(method, url, body)
            status, title = 0, reason or type(error).__name__
        title = " ".join(str(title).replace(self.key, "***").split())[:200]
        return status, f"{status} {title}" if status else title

    def trust_others(self) -> bool:
        """Take the next file of CA certificates that is there; after the last one, False, and from the beginning."""
        for path in self.bundles:
            with contextlib.suppress(Exception):
                self.opener = opener(path)
                return True
        self.opener, self.bundles = opener(), bundles()
        return False

    def write(self) -> None:
        """Write the own word, where it has changed or is BEAT old; nothing waits for a disk that is full."""
        last = {"pod": self.pod, "deadline": self.deadline, "state": self.state, "word": self.word}
        last.update(renewals=self.renewals, lacks=self.lacking, status=self.status, answer=self.answer)
        last["clocks"] = [boot_id(), self.first, self.ahead]
        if last == self.last and self.boot() - self.written < BEAT:
            return
        part = self.own.with_name(f".{self.own.name}.part")
        with contextlib.suppress(OSError):
            self.own.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({**last, "beat": round(self.wall(), 3)}))
            os.replace(part, self.own)
            self.last, self.written = last, self.boot()

    def insist(self) -> None:
        """End an overdue pod although :meth:`step` hangs in a file, or fails, for HUNG; for another thread."""
        now = self.boot()
        if self.late() >= 0 and now - self.stepped > HUNG and now - self.tried >= RETRY:
            self.end()


def run(leash: Leash, work: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Work every TICK seconds for good; an error is said and ends nothing."""
    while True:
        try:
            work()
        except Exception as error:
            leash.say(f"leash: {type(error).__name__} in {work.__name__}")
        sleep(TICK)


def main() -> None:
    leash = Leash(os.environ, "/etc/ssh", time.time, lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    threading.Thread(target=run, args=(leash, leash.insist), daemon=True).start()
    run(leash, leash.step)


if __name__ == "__main__":
    main()
