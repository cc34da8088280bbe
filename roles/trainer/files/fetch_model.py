#!/usr/bin/env python3
"""Fetch a base model from the hub into the trainer's cache: ``fetch_model.py <state directory>``.

It runs detached from whoever started it, in a small environment that holds huggingface_hub and is made in
seconds, so that the model arrives while the big environment is still being made. What is small comes first, so that a
recipe can be held against the model before its weights are there. What was cut off goes on where it was. The state
directory holds:

    request.json   model, revision (empty: main), cache (what HF_HOME is for the training)
    status.json    state (fetching, present, failed), commit, described (the folder, from when its configuration and
                   tokenizer are there), folder (when all is), bytes, total_bytes, bytes_per_second, error, process,
                   and a heartbeat (seconds since boot)
    complete.json  every file of the model with its size, written last: whether it is there needs no network
    lock           held while somebody fetches; a second one leaves it to the first
    fetch.log      what huggingface_hub says

A token comes by HF_TOKEN in the environment and is written nowhere. ``rundir.py`` lies beside this file.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import errno
import fnmatch
import json
import os
import pathlib
import shutil
import sys
import time
import traceback
from typing import Any, Callable, NamedTuple, Optional

import rundir

HEARTBEAT = 1.0  # seconds between two writes of status.json
RATE_OVER = 15  # heartbeats that the rate is an average of
TRIES = 6  # attempts without a byte of progress before a network error counts
BACKOFF = 1.0  # seconds before the second attempt; each further one waits twice as long
WORKERS = 8  # files at a time
TIMEOUT = 30.0  # seconds the hub has to answer; huggingface_hub's default for the list of files is for ever
CHUNK = 1024 * 1024  # bytes between two writes of a file; a cut costs at most that much
RESERVE = 64 * 1024  # bytes kept back so that the last word can be written to a full disk
LOCK_TIMEOUT = 15.0  # seconds for one that has ended to let go of the lock

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # the weights that transformers loads
TEXTS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")  # configuration and tokenizer; never pickles


class Trouble(Exception):
    """Why there is no model, in a sentence with what to do."""


class File(NamedTuple):
    """A file of the repository: its size in bytes (0 where nobody tells), and its name among the cache's blobs."""

    size: int
    blob: str


def gigabytes(count: float) -> str:
    """Write bytes in words: 15.2 GB."""
    return f"{count / 1e9:.1f} GB"


def check_room(model: str, folder: pathlib.Path, needed: int, free: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        model: What is fetched.
        folder: The cache.
        needed: Bytes still to come.
        free: Bytes free on its disk.

    Raises:
        Trouble: The disk is too small.
    """
    if needed > free:
        raise Trouble(
            f"{model} needs {gigabytes(needed)} more in {folder}, and its disk has {gigabytes(free)} free. Free some "
            "space there, or take a bigger disk, and run the same command again; nothing that was fetched is lost."
        )


class Fetch:
    """One model on its way into the cache.

    Args:
        state_dir: The state directory, with request.json in it.
    """

    def __init__(self, state_dir: pathlib.Path):
        request = rundir.read_json(state_dir / "request.json")
        self.state_dir = state_dir
        self.model, self.revision = str(request["model"]), str(request["revision"])
        self.hub = pathlib.Path(request["cache"]) / "hub"
        self.home = self.hub / f"models--{self.model.replace('/', '--')}"  # huggingface_hub's layout
        self.commit = ""
        self.files: dict[str, File] = {}  # all that the repository has
        self.wanted: list[str] = []  # what is fetched of it; empty until it is known
        self.rates: collections.deque[tuple[float, int]] = collections.deque(maxlen=RATE_OVER)
        self.status: dict[str, Any] = {
            "schema_version": rundir.SCHEMA_VERSION,
            "state": "fetching",
            "model": self.model,
            "revision": self.revision,
            "commit": "",
            "described": "",
            "folder": "",
            "bytes": 0,
            "total_bytes": 0,
            "bytes_per_second": None,
            "error": "",
            "process": rundir.identity(os.getpid()),
        }

    def run(self) -> None:
        """Fetch, with a heartbeat; whatever happens ends in status.json."""
        self.write()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            work = pool.submit(self.fetch)
            while not concurrent.futures.wait([work], timeout=HEARTBEAT).done:
                self.write()
        error = work.exception()
        if error is None:
            self.write(state="present", folder=str(work.result()))
        else:
            self.write(state="failed", error=self.sentence(error))
        (self.state_dir / ".reserve").unlink(missing_ok=True)

    def write(self, **changes: Any) -> None:
        """Update status.json with the bytes that are on the disk. On a full one the reserve makes room."""
        if self.wanted:
            size = sum(self.on_disk(name) for name in self.wanted)
            self.rates.append((time.monotonic(), size))
            seconds, gained = (last - first for first, last in zip(self.rates[0], self.rates[-1]))
            self.status["bytes"] = size
            self.status["total_bytes"] = sum(self.files[name].size for name in self.wanted)
            self.status["bytes_per_second"] = round(max(gained, 0) / seconds) if seconds else None
        self.status.update(changes, heartbeat=rundir.uptime())
        reserve = self.state_dir / ".reserve"
        try:
            rundir.write_json(self.state_dir / "status.json", self.status)
            if not reserve.exists():
                reserve.write_bytes(b"\0" * RESERVE)
        except OSError:
            with contextlib.suppress(OSError):
                reserve.unlink(missing_ok=True)
                rundir.write_json(self.state_dir / "status.json", self.status)

    def fetch(self) -> pathlib.Path:
        """Bring everything that a training loads, and return the folder of the snapshot.

        Raises:
            Exception: Anything; :meth:`sentence` words it.
        """
        from huggingface_hub import constants

        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        self.list_files()
        if not {SINGLE, INDEX} & self.files.keys():
            raise Trouble(
                f"{self.model} has no safetensors weights ({SINGLE} or {INDEX}). Other formats are not fetched: "
                "pickles can run code. Name a base model that has them, or a folder on the trainer with a converted "
                "one."
            )
        texts = [
            name
            for name in self.files
            if any(fnmatch.fnmatch(name, form) for form in TEXTS) and ("/" not in name or name.endswith(".jinja"))
        ]
        self.get(texts)
        snapshot = self.home / "snapshots" / self.commit
        self.status["described"] = str(snapshot)  # the next heartbeat says so
        wanted = [*texts, *self.weights(snapshot)]
        needed = sum(max(self.files[name].size - self.on_disk(name), 0) for name in wanted)
        check_room(self.model, self.hub, needed, shutil.disk_usage(self.hub).free)
        self.wanted = wanted
        self.get(wanted)
        for name in wanted:
            if self.files[name].size not in (0, self.on_disk(name)):
                raise Trouble(
                    f"{snapshot / name} has {self.on_disk(name)} bytes instead of {self.files[name].size}. "
                    "Run the same command again."
                )
        # What asks for the model by its name alone finds this commit with HF_HUB_OFFLINE, too. Axolotl 0.21 does so of
        # models whose code comes with them (monkeypatch/multipack.py, patch_remote) and of DeepSeek V2 with Liger.
        for name in {self.revision or constants.DEFAULT_REVISION, constants.DEFAULT_REVISION} - {self.commit}:
            ref = self.home / "refs" / name
            if name == (self.revision or constants.DEFAULT_REVISION) or not ref.exists():
                ref.parent.mkdir(parents=True, exist_ok=True)
                new = ref.with_name(f"{ref.name}.{os.getpid()}")
                new.write_text(self.commit, encoding="utf-8")
                os.replace(new, ref)
        sizes = {str(snapshot / name): self.on_disk(name) for name in wanted}
        rundir.write_json(self.state_dir / rundir.COMPLETE, {"files": sizes})
        return snapshot

    def list_files(self) -> None:
        """Ask the hub which commit the revision is, and for its files."""
        from huggingface_hub import HfApi

        def ask() -> Any:
            return HfApi().model_info(self.model, revision=self.revision or None, files_metadata=True, timeout=TIMEOUT)

        info = patiently(ask)
        self.commit = info.sha
        self.status["commit"] = info.sha
        for entry in info.siblings or []:
            self.files[entry.rfilename] = File(entry.size or 0, (entry.lfs and entry.lfs.sha256) or entry.blob_id or "")

    def weights(self, snapshot: pathlib.Path) -> list[str]:
        """List the files that hold the weights: those of the index where there is one, and no second copy of them."""
        if INDEX not in self.files:
            return [SINGLE]
        index = json.loads((snapshot / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
        lacking = [name for name in names if name not in self.files]
        if lacking:
            raise Trouble(
                f"{self.model} lacks {', '.join(lacking)}, which its {INDEX} names. Try another revision, "
                "or tell its authors."
            )
        return names

    def get(self, names: list[str]) -> None:
        """Fetch files, some at a time; each goes on where it was cut off."""
        from huggingface_hub import hf_hub_download

        def fetch_file(name: str) -> None:
            # One by one instead of snapshot_download: without a connection that takes a half-filled folder for whole.
            self.drop_misfit(name)
            patiently(
                lambda: hf_hub_download(self.model, name, revision=self.commit, cache_dir=self.hub),
                lambda: self.on_disk(name),
            )

        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            for _ in pool.map(fetch_file, names):
                pass

    def places(self, name: str) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
        """Return where a file of the model lies: its link in the snapshot, its blob, its blob while it arrives."""
        blob = self.home / "blobs" / (self.files[name].blob or "-")
        return self.home / "snapshots" / self.commit / name, blob, blob.with_name(f"{blob.name}.incomplete")

    def on_disk(self, name: str) -> int:
        """Count the bytes of a file that are there."""
        for path in self.places(name):
            with contextlib.suppress(OSError):
                return path.stat().st_size
        return 0

    def drop_misfit(self, name: str) -> None:
        """Delete what can never become the file: huggingface_hub takes a blob that is there without a look at it."""
        link, blob, arriving = self.places(name)
        size = self.files[name].size
        if not size:
            return
        for path in (link, blob):
            if path.exists() and path.stat().st_size != size:
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        if arriving.exists() and arriving.stat().st_size > size:
            arriving.unlink(missing_ok=True)

    def sentence(self, error: BaseException) -> str:
        """Say what went wrong and what to do, for the user."""
        if isinstance(error, Trouble):
            return str(error)
        if isinstance(error, ImportError):
            return f"{sys.executable} has no huggingface_hub ({error}). Delete that environment; it is made again."
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of {self.hub} became full. Free some space there and run the same command again; "
                "nothing that was fetched is lost."
            )
        from huggingface_hub import constants, errors, get_token

        cause = unwrapped(error)
        page = f"{constants.ENDPOINT}/{self.model}"
        token = bool(get_token())
        export = "export HF_TOKEN=… where you run ansible-playbook"
        if isinstance(cause, errors.GatedRepoError):
            if not token:
                return f"{self.model} is gated. Accept its licence on its page ({page}), then {export}."
            return (
                f"{self.model} is gated, and the account of HF_TOKEN has no access to it. Ask for it on its page "
                f"({page}), or {export} with a token of an account that has it."
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            who = "the account of HF_TOKEN has no access to it" if token else "no HF_TOKEN is set"
            return (
                f"the hub shows no model {self.model}: there is none of this name, or it is private and {who} "
                f"(the hub answers both alike). Check the name of the base model; for a private one {export}."
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"{self.model} has no revision «{self.revision}». Name a branch, a tag or a whole commit of {page}."
        if isinstance(cause, errors.DisabledRepoError):
            return f"{self.model} was disabled on the hub ({page}). Choose another base model."
        if isinstance(cause, errors.HFValidationError):
            return (
                f"«{self.model}» is no model of the hub: those are called owner/name. A folder on the trainer is named "
                "by its absolute path."
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return (
                f"HF_HUB_OFFLINE is set on this trainer, so {self.model} cannot be fetched. Unset it, or name a folder "
                "on the trainer that holds the model."
            )
        if isinstance(cause, errors.HfHubHTTPError):
            code = cause.response.status_code
            if code == 401:
                return f"the hub does not accept HF_TOKEN: it is mistyped or was revoked. Make a new one and {export}."
            if code == 403:
                return (
                    f"HF_TOKEN may not read {self.model}. Give the token read access to it (for a fine-grained token: "
                    f"to gated repositories, too), or {export} with another one."
                )
            return (
                f"the hub ({constants.ENDPOINT}) answers with HTTP {code} for {self.model}. Run the same command again "
                "later; what was fetched is kept."
            )
        if transient(cause):
            return (
                f"no connection to the hub ({constants.ENDPOINT}): {cause or type(cause).__name__}. Check the "
                "trainer's network and its HTTPS_PROXY or HF_ENDPOINT, and run the same command again: it goes on "
                "where it was. Without a network, name a folder on the trainer that holds the model."
            )
        traceback.print_exception(type(error), error, error.__traceback__)  # to fetch.log
        return f"{self.model} could not be fetched: {cause}. Look at {self.state_dir / 'fetch.log'} on the trainer."


def unwrapped(error: BaseException) -> BaseException:
    """Return the error behind huggingface_hub's «not in the cache either»."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error


def transient(error: BaseException) -> bool:
    """Tell whether an error may go away by itself."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    cause = unwrapped(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in (408, 429) or cause.response.status_code >= 500
    # huggingface_hub's own check of a file's size raises a bare OSError.
    return isinstance(cause, httpx.TransportError) or (type(cause) is OSError and cause.errno is None)


def patiently(call: Callable[[], Any], done: Callable[[], int] = lambda: 0) -> Any:
    """Call until it works, as long as errors are of the passing kind and there is progress now and then.

    Args:
        call: What to do.
        done: Bytes so far; when they grew since the last attempt, the count of attempts begins anew.
    """
    attempts = 0
    while True:
        before = done()
        try:
            return call()
        except Exception as error:
            attempts = 1 if done() > before else attempts + 1
            if not transient(error) or attempts >= TRIES:
                raise
            print(f"attempt {attempts}: {unwrapped(error)!r}; trying again", file=sys.stderr, flush=True)
        time.sleep(BACKOFF * 2 ** (attempts - 1))


def take(held: contextlib.ExitStack, state_dir: pathlib.Path) -> bool:
    """Take the lock; return whether nobody else is fetching.

    One that has written its last status still holds the lock for a moment, and one that has just begun has not
    written its first one yet: both are waited for.

    Args:
        held: What is left when the lock may go.
        state_dir: Where the fetch keeps its status, and the lock.

    Raises:
        SystemExit: It cannot be had.
    """
    deadline, lock = time.monotonic() + LOCK_TIMEOUT, state_dir / "lock"
    while True:
        try:
            held.enter_context(rundir.locked(lock, 0))
            return True
        except BlockingIOError:
            pass
        except OSError as error:
            raise SystemExit(f"{lock} cannot be locked: {error.strerror}") from None
        status: dict[str, Optional[Any]] = rundir.read_json(state_dir / "status.json")
        if rundir.is_fetching(state_dir, status):
            return False
        if time.monotonic() > deadline:
            raise SystemExit(f"{lock} is held by a process that does not fetch")
        time.sleep(0.05)


def main() -> None:
    state_dir = pathlib.Path(sys.argv[1])
    os.umask(0o077)  # a gated model is not for all users of a host
    with contextlib.ExitStack() as held:
        if not take(held, state_dir):
            return
        status = rundir.read_json(state_dir / "status.json")
        if status.get("state") == "present" and rundir.defect(state_dir, anywhere=True) is None:
            return  # another one fetched it while this one waited for the lock
        fetch = Fetch(state_dir)
        os.environ.update(
            HF_HOME=str(fetch.hub.parent),  # a token that was stored there by a login is found, too
            HF_HUB_DISABLE_XET="1",  # xet begins a file that was cut off anew
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        fetch.run()


if __name__ == "__main__":
    main()
