"""Adapters: what proves one, and how it is kept under output/adapters/<agent>/<run_id>/."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import re
import shutil
import stat
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import paths, rundir
from ansible.module_utils.lora_forge.adapters import expectation
from ansible.module_utils.lora_forge.adapters.expectation import brief
from ansible.module_utils.lora_forge.adapters.manifest import (
    SCHEMA_VERSION,
    Cost,
    Counts,
    Dataset,
    DeliveredFile,
    Evaluation,
    Host,
    Losses,
    Manifest,
    Matrices,
    Steps,
)
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.trainer import run_state, saved
from ansible.module_utils.lora_forge.version import full_version

MANIFEST = "manifest.json"
WEIGHTS = "adapter_model.safetensors"
# What a delivered adapter may go without; older tokenizers keep their template in tokenizer_config.json.
_OPTIONAL = ("output/chat_template.jinja", "output/special_tokens_map.json", "answers.jsonl")
# What a delivered adapter consists of: name in the run directory -> whether it must be there.
FILES = {path: path not in _OPTIONAL for path in paths.ADAPTER}
_RECORDS = "wandb/*run-*/run-*.wandb"  # what W&B's client recorded, one folder for each start; latest-run is none
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REFUSED = "Nothing of it is taken: its trainer is not to be trusted, or was damaged"
_TOLD = 20  # sentences on one adapter: it may have a hundred thousand tensors
CHUNK = 1 << 24  # elements looked at at a time, so that a large tensor needs no copy of its size


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def sha256_file(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(run_dir: pathlib.Path, checksums: bool = True) -> list[dict[str, Any]]:
    """List the files of a run that make up its adapter.

    Args:
        run_dir: The run directory.
        checksums: Whether to hash them.

    Returns:
        A list of {path (in the run directory), name, bytes, sha256}.

    Raises:
        UserError: One that must be there is missing, by name.
    """
    rows = []
    for name, needed in FILES.items():
        path = run_dir / name
        if path.is_file():
            row = {"path": name, "name": path.name, "bytes": path.stat().st_size}
            rows.append(row | ({"sha256": sha256_file(path)} if checksums else {}))
        elif needed:
            raise UserError(f"{path} is missing, so the adapter is not whole")
    for path in sorted(run_dir.glob(_RECORDS)):
        name = str(path.relative_to(run_dir))
        if path.stat().st_size > (paths.adapter_limit(name) or -1):
            continue  # the controller would not take it, and an adapter is whole without it
        row = {"path": name, "name": name, "bytes": path.stat().st_size}
        rows.append(row | ({"sha256": sha256_file(path)} if checksums else {}))
    return rows


def checked_files(listed: Any) -> list[dict[str, Any]]:
    """Take a trainer's list of an adapter's files, where it holds what an adapter consists of and nothing else.

    Args:
        listed: What the trainer said: path, bytes and sha256 of each. What else stands there is passed over.

    Returns:
        A list of {path, name, bytes, sha256}; the names in the adapter's folder are ours.

    Raises:
        UserError: It names another file, one that is too large, one twice, or leaves out one that must be there.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in listed if isinstance(listed, list) else [listed]:
        path, size, sha256 = (row.get(key) if isinstance(row, dict) else None for key in ("path", "bytes", "sha256"))
        limit, said = paths.adapter_limit(path), paths.quoted(path)
        if limit is None or not isinstance(path, str):
            why = paths.flaw(path) or "is none of what an adapter consists of"
            raise UserError(f"the trainer lists {said} among the adapter's files, which {why}. {_REFUSED}")
        if path in rows:
            raise UserError(f"the trainer lists {said} twice. {_REFUSED}")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= limit:
            raise UserError(
                f"the trainer says that {said} has {paths.quoted(size)} bytes, and such a file has {limit:,} at most. "
                f"{_REFUSED}"
            )
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise UserError(f"the trainer gives no SHA-256 of {said}. {_REFUSED}")
        name = path if path not in FILES else path.rpartition("/")[2]
        rows[path] = {"path": path, "name": name, "bytes": size, "sha256": sha256}
    lacking = [path for path, needed in FILES.items() if needed and path not in rows]
    if lacking:
        raise UserError(f"the trainer's list lacks {', '.join(lacking)}, so the adapter is not whole")
    if len(rows) > len(FILES) + paths.MOST_RECORDS:
        raise UserError(f"the trainer lists {len(rows)} files, which no adapter has. {_REFUSED}")
    return list(rows.values())


def verify(folder: pathlib.Path, recipe: dict[str, Any], expected: pathlib.Path) -> dict[str, Any]:
    """Hold an adapter's files against what the training was to make, and against its recipe.

    Args:
        folder: Where adapter_config.json and the safetensors lie.
        recipe: lora_r, lora_rank_pattern, lora_alpha, peft_use_rslora, peft_use_dora, base_model and model_revision are
            compared.
        expected: The run's expected.json: the tensors that the recipe makes of the base model.

    Returns:
        ``problems`` (sentences, empty when it is proven), ``modules`` (adapted ones), ``rank``, ``parameters``,
        ``untrained`` (matrices that are zero, as no gradient reached them).
    """
    problems: list[str] = []
    facts: dict[str, Any] = {"problems": problems, "modules": 0, "rank": None, "parameters": 0, "untrained": 0}
    config = rundir.read_json(folder / "adapter_config.json")
    if not config:
        problems.append(f"{folder / 'adapter_config.json'} is missing or not JSON")
        return facts
    facts["rank"] = config.get("r") if isinstance(config.get("r"), int) else None
    if facts["rank"] != recipe["lora_r"]:
        problems.append(f"rank is {brief(config.get('r'))}, the recipe says {recipe['lora_r']}")
    for key, value, wanted in _scale(config, recipe):
        if value != wanted:
            problems.append(f"{key} of adapter_config.json is {brief(value)}, and the recipe makes it {wanted}")
    base, wanted = str(config.get("base_model_name_or_path")), str(recipe["base_model"])
    if not expectation.is_same_base(base, wanted):
        problems.append(f"base model is {brief(base)}, the recipe says {wanted}")
    revision = expectation.wanted_revision(recipe)
    if config.get("revision") != revision:
        problems.append(f"revision of the base model is {brief(config.get('revision'))}, the recipe says {revision}")
    problems += _code_problems(folder, config, wanted)
    path = folder / WEIGHTS
    try:
        tensors = read_header(path)
    except (OSError, ValueError) as error:
        problems.append(f"{path} cannot be read: {error}")
        return facts
    facts["modules"], from_zero, at_random = expectation.counts(tensors)
    facts["parameters"] = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
    named = expectation.read(expected)
    if named is None:
        problems.append(
            f"{expected} is missing, or is no list of the tensors that the run makes; see what train.log says"
        )
        return facts
    problems += expectation.recipe_problems(named, recipe)
    problems += expectation.differences({name: tensor["shape"] for name, tensor in tensors.items()}, named)
    wrong, zero = _value_problems(path, tensors)
    untrained = expectation.read_untrained(folder / rundir.GRADIENTS)
    problems += wrong + expectation.zero_problems(zero, from_zero, at_random, untrained, named.towers)
    facts["untrained"] = len(untrained.intersection(zero, from_zero))
    if len(problems) > _TOLD:
        problems[_TOLD:] = [f"and {len(problems) - _TOLD} more"]
    return facts


def _scale(config: dict[str, Any], recipe: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List what decides how much an adapter adds to its base: key, what adapter_config.json has, what the recipe says.

    Args:
        config: Its adapter_config.json.
        recipe: Of :func:`verify`.
    """
    alpha = recipe.get("lora_alpha")
    return [
        *([("lora_alpha", config.get("lora_alpha"), alpha)] if alpha is not None else []),
        *((key, bool(config.get(key)), bool(recipe.get(f"peft_{key}"))) for key in ("use_rslora", "use_dora")),
    ]


def template_problems(run_dir: pathlib.Path) -> list[str]:
    """Hold the delivered tokenizer's chat template against the one that the data was rendered with.

    Args:
        run_dir: The run directory. What was trained with is an event of metrics.jsonl; where there is none, nothing is
            known and nothing is said.

    Returns:
        Sentences, empty where they are one.
    """
    events, _ = rundir.read_lines(run_dir / "metrics.jsonl", 0, lambda line: line.get("event") == "template")
    trained = {str(event.get("sha256")) for event in events}
    if not trained:
        return []
    path = run_dir / "output/chat_template.jinja"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, ValueError) as error:
        return [f"{path} cannot be read: {error}"]
    if text is None:  # older tokenizers keep it in their configuration
        text = rundir.read_json(run_dir / "output/tokenizer_config.json").get("chat_template")
    if not isinstance(text, str):
        return [
            "its tokenizer has no chat template, though it was trained with one: nobody could ask it as it was trained"
        ]
    if trained != {sha256_text(text)}:
        return [
            "its tokenizer's chat template is not the one that its data was rendered with: whoever serves it would ask "
            "in another form than it was trained in"
        ]
    return []


def import_problems(config: dict[str, Any]) -> list[str]:
    """List what would have PEFT import modules that are no part of it.

    Args:
        config: An adapter_config.json.
    """
    problems = []
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if mapping and not re.fullmatch(r"(transformers|peft)(\.\w+)*", str(library)):
        problems.append(f"adapter_config.json has {brief(library)} imported (auto_mapping), which is no part of PEFT")
    # With a megatron_config PEFT imports what megatron_core names (peft/tuners/lora/tp_layer.py); older ones, anything.
    if config.get("megatron_config") is not None:
        problems.append("adapter_config.json has a megatron_config, with which PEFT imports what it names")
    return problems


def _code_problems(folder: pathlib.Path, config: dict[str, Any], base_model: str) -> list[str]:
    """List what would have whoever loads the adapter import code that the base model does not bring itself.

    Args:
        folder: Where the adapter lies.
        config: Its adapter_config.json.
        base_model: The recipe's.
    """
    problems = import_problems(config)
    tokenizer = rundir.read_json(folder / "tokenizer_config.json")
    named = tokenizer.get("auto_map"), config.get("auto_map")
    classes = [word for each in named for word in _words(each) if "--" in word]
    foreign = sorted({word for word in classes if word.rpartition("--")[0] != base_model})
    if foreign and not base_model.startswith("/"):
        problems.append(f"its files have code loaded from {brief(', '.join(foreign))} (auto_map), not {base_model}")
    return problems


def _words(value: Any) -> list[str]:
    """List the texts in a JSON value of two levels at most, as an auto_map is."""
    items = list(value.values()) if isinstance(value, dict) else [value]
    flat = [word for item in items for word in (item if isinstance(item, list) else [item])]
    return [word for word in flat if isinstance(word, str)]


def read_header(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Read the header of a safetensors file: tensor name -> dtype, shape, begin and end (bytes from the file's start).

    Format: eight bytes with the header's length (little endian), the header in JSON, then the data
    (https://github.com/huggingface/safetensors#format). The library checks it; it reads no bf16 into numpy.

    Raises:
        ValueError: The file is not whole, or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(saved.MAX_HEADER, path.stat().st_size):
        raise ValueError(f"its header would have {length:,} bytes")
    try:
        with safe_open(path, framework="numpy"):  # checks header, overlaps and the file's size
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for tensor in header.values():
        begin, end = tensor.pop("data_offsets")
        tensor["begin"], tensor["end"] = 8 + length + begin, 8 + length + end
    return header


def _value_problems(path: pathlib.Path, tensors: dict[str, Any]) -> tuple[list[str], list[str]]:
    """List values that are not finite, and name the tensors that are all zero; over a memory map, bf16 by its bits."""
    import numpy as np

    problems, zero = [], []
    bits = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80),
            "F64": (np.uint64, 0x7FF0000000000000)}  # fmt: skip
    data = np.memmap(path, np.uint8, "r")
    for name, tensor in tensors.items():
        if tensor["dtype"] not in bits:
            problems.append(f"tensor {brief(name)} has type {brief(tensor['dtype'])}")
            continue
        kind, exponent = bits[tensor["dtype"]]
        raw = data[tensor["begin"] : tensor["end"]]
        if raw.ctypes.data % np.dtype(kind).itemsize:  # the format aligns data to 8 bytes; old writers did not
            raw = raw.copy()
        values = raw.view(kind)
        bad = some = 0
        for at in range(0, values.size, CHUNK):
            part = values[at : at + CHUNK]
            bad += int(np.count_nonzero((part & kind(exponent)) == kind(exponent)))
            some += int(np.count_nonzero(part << kind(1)))  # the sign bit aside
        if bad:
            problems.append(f"tensor {brief(name)} holds {bad} values that are NaN or infinite")
        if not some:
            zero.append(name)
    return problems, zero


def run_problems(observation: dict[str, Any]) -> list[str]:
    """List what speaks against a run besides its files: its state, the steps, the loss, the exit code.

    Args:
        observation: What training_run_info returned of it.
    """
    state = (
        [f"the run is {observation['state']}: {observation['detail']}"] if observation["state"] != "finished" else []
    )
    return state + run_state.unproven_reasons(
        observation["status"], run_state.Progress.from_dict(observation["progress"])
    )


def make_manifest(
    run: PlannedRun,
    observation: dict[str, Any],
    verification: dict[str, Any],
    *,
    base_model: str,
    host: Host,
    lock_sha256: str,
    evaluation: Evaluation,
    cost: Cost,
    git: dict[str, Any],
) -> Manifest:
    """Put down everything that is known of a verified run; the files are added when they are delivered.

    Args:
        run: As it was planned.
        observation: What training_run_info returned of it.
        verification: What lora_adapter_info returned of it.
        base_model: As the trainer loaded it.
        host: The trainer.
        lock_sha256: Of the lock file of its environment.
        evaluation: What the run was evaluated on.
        cost: What it cost.
        git: From ``git_facts`` of ``version.py``: of the checkout that delivers it.
    """
    progress, status = observation["progress"], observation["status"]
    began, ended = status.get("first_started_at"), status.get("finished_at")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        run_id=run.run_id,
        agent=run.agent,
        fingerprint=run.fingerprint,
        verdict="verified",
        rehearsal=run.rehearsal,
        base_model=base_model,
        recipe=run.recipe,
        recipe_sha256=run.recipe_sha256,
        lock_sha256=lock_sha256,
        datasets=tuple(Dataset(file.path, file.use, file.sha256, file.examples) for file in run.datasets),
        data=Counts.from_dict(progress["data"]) if progress["data"] else None,
        lora=Matrices.from_dict(verification),
        versions={**verification["versions"], "lora-forge": full_version(git)},
        host=host,
        steps=Steps(progress["step"], progress["planned"], progress["adapter_step"]),
        loss=Losses(
            first=progress["loss_first"],
            last=progress["loss"],
            eval_first=progress["eval_first"],
            eval_last=progress["eval_loss"],
            eval_adapter=progress["eval_adapter"],
        ),
        evaluation=evaluation,
        starts=status.get("starts"),
        started_at=began,
        finished_at=ended,
        duration_s=status.get("seconds"),
        cost=cost,
        wandb=progress["wandb"] or {},
        git=git,
    )


def delivered_folders(adapters: pathlib.Path) -> list[pathlib.Path]:
    """List the folders of all delivered adapters, each once: ``latest`` is one of them already.

    Args:
        adapters: output/adapters.
    """
    return [path.parent for path in adapters.glob(f"*/*/{MANIFEST}") if not path.parent.is_symlink()]


def read_manifest(folder: pathlib.Path) -> Optional[Manifest]:
    """Read a delivered adapter's manifest; None where there is none, or no object in it.

    Args:
        folder: output/adapters/<agent>/<run_id>.
    """
    data = rundir.read_json(folder / MANIFEST)
    return Manifest.from_dict(data) if data else None


def integrity_error(folder: pathlib.Path, hashes: bool = False) -> Optional[str]:
    """Tell why a delivered adapter is not there, or not whole; None when it is.

    Answered by manifest, sizes and times. A file that is newer than the manifest is hashed.

    Args:
        folder: output/adapters/<agent>/<run_id>.
        hashes: Hash every file.
    """
    if not folder.is_dir():
        return "never trained"
    manifest = read_manifest(folder)
    if manifest is None or manifest.verdict != "verified" or manifest.files is None:
        return f"{folder} has no manifest of a verified adapter"
    written = (folder / MANIFEST).stat().st_mtime_ns
    for file in manifest.files:
        if file.path is None or file.sha256 is None or paths.flaw(file.path):
            return f"{folder / MANIFEST} is damaged"
        path = folder / file.path
        try:
            facts = path.stat()
        except OSError:
            return f"{path} is missing"
        if not stat.S_ISREG(facts.st_mode):
            return f"{path} is no file"
        if facts.st_size != file.bytes:
            return f"{path} has {facts.st_size} bytes instead of {file.bytes}"
        if (hashes or facts.st_mtime_ns > written) and sha256_file(path) != file.sha256:
            return f"{path} has changed since it was verified"
    return None


def check_file(folder: pathlib.Path, path: str, row: dict[str, Any], named: pathlib.Path) -> None:
    """Hold a file against the trainer's list of it.

    Args:
        folder: Where the way to it begins.
        path: Below that.
        row: Of :func:`checked_files`.
        named: What messages call it.

    Raises:
        UserError: It is a link, or lies behind one; its size or its hash is another one.
        FileNotFoundError: It is not there.
    """
    if paths.through_link(folder, path):
        raise UserError(f"{named} is a link, or lies behind one, and is not followed. {_REFUSED}")
    place = folder / path
    if not stat.S_ISREG(place.stat().st_mode):
        raise UserError(f"{named} is no file. {_REFUSED}")
    if place.stat().st_size != row["bytes"] or sha256_file(place) != row["sha256"]:
        raise UserError(f"{named} is not what the trainer listed; run the same command again")


def drop_damaged(folder: pathlib.Path, files: list[dict[str, Any]]) -> list[str]:
    """Delete what an earlier fetch left with the right size and another content, as a power cut does.

    By size and time alone rsync would keep it.

    Args:
        folder: Where it was fetched to.
        files: From :func:`checked_files`.

    Returns:
        What was deleted, below the folder.
    """
    dropped = []
    for row in files:
        place = folder / row["path"]
        if paths.through_link(folder, row["path"]) or not place.is_file() or place.stat().st_size != row["bytes"]:
            continue  # rsync goes on with what is shorter, and compares what it takes of it
        if sha256_file(place) != row["sha256"]:
            place.unlink()
            dropped.append(row["path"])
    return dropped


def partial_folder(home: pathlib.Path, run_id: str) -> pathlib.Path:
    """Return where a delivery is put together, beside the place where it goes in one rename."""
    return home / f".{run_id}.partial"


def deliver(
    source: pathlib.Path,
    home: pathlib.Path,
    files: list[dict[str, Any]],
    manifest: Manifest,
    replacing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> pathlib.Path:
    """Bring an adapter into output/adapters/<agent>/<run_id>/ whole, or not at all.

    Args:
        source: The run directory, or a copy of it on the controller.
        home: output/adapters/<agent>.
        files: The trainer's list, with its hashes.
        manifest: What is known of the run.
        replacing: Entered while a damaged adapter makes way.

    Returns:
        The delivered folder.

    Raises:
        UserError: A file differs from the trainer's, or the adapter does not hold up.
    """
    run_id = str(manifest.run_id)
    final, partial = home / run_id, partial_folder(home, run_id)
    files = checked_files(files)
    for row in files:
        check_file(source, row["path"], row, source / row["path"])
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for row in files:
            (partial / row["name"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / row["path"], partial / row["name"], follow_symlinks=False)
            check_file(partial, row["name"], row, source / row["path"])  # as it may have changed meanwhile
        recipe = manifest.recipe | {"base_model": manifest.base_model}
        facts = verify(partial, recipe, partial / rundir.EXPECTED)
        if facts["problems"]:
            raise UserError(f"the adapter of {run_id} does not hold up: " + "; ".join(facts["problems"]))
        delivered = tuple(DeliveredFile(row["name"], row["sha256"], row["bytes"]) for row in files)
        rundir.write_json(partial / MANIFEST, dataclasses.replace(manifest, files=delivered).as_dict())
        rundir.to_disk(*sorted(partial.rglob("*")), partial)  # sizes and times alone are looked at later
        if final.exists():  # a damaged one; it was looked at before
            with replacing():
                shutil.rmtree(final)
                partial.rename(final)
        else:
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final
