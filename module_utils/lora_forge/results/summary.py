"""What people read at the end of a training. Pure functions."""

from __future__ import annotations

import pathlib
from typing import Any

from ansible.module_utils.lora_forge.text import duration, pair


def ready_lines(
    run: dict[str, Any], manifest: dict[str, Any], home: pathlib.Path, promoted: bool, word: str
) -> list[str]:
    """The lines for an adapter that is there.

    Args:
        run: The planned run; its state tells whether it was there before.
        manifest: Its manifest.
        home: The agent's folder of adapters.
        promoted: Whether ``latest`` points to it.
        word: What is to be said of that; empty for nothing.
    """
    agent, run_id = run["agent"], manifest["run_id"]
    # As seen from the checkout, where output/ is unless somebody says otherwise.
    folder = "/".join(home.parts[-3:]) if home.parts[-3:-1] == ("output", "adapters") else str(home)
    if run["state"] == "ready":
        return [
            f"{agent} is ready already (same recipe, same data): {folder}/{run_id}. "
            "Nothing to do; -e fresh=true trains again.",
            *([] if promoted or not word else [f"  {word}"]),
        ]
    at = f"{folder}/latest → {run_id}" if promoted else f"{folder}/{run_id}"
    loss, steps = manifest["loss"], manifest["steps"]
    figures = [f"{steps['reached']} of {steps['planned']} steps", pair("loss", loss["first"], loss["last"])]
    if loss["eval_last"] is not None:
        figures.append(pair("eval", loss["eval_first"], loss["eval_last"]))
    if manifest["duration_s"] is not None:
        where = (manifest.get("host") or {}).get("name")
        figures.append(f"trained in {duration(manifest['duration_s'])}" + (f" on {where}" if where else ""))
    figures.append("cost {usd:.2f} USD".format(**manifest["cost"]) if manifest["cost"]["usd"] else "cost 0")
    lines = ["", f"{agent} is ready   {at}", "  " + "   ".join(figures), *([f"  {word}"] if word else [])]
    best = steps.get("adapter")
    if best is not None and best < steps["reached"]:
        lines.append(
            f"  the adapter is that of step {best}, the best evaluated one: {pair('eval', loss['eval_adapter'], None)}"
        )
    data = manifest.get("data")
    if data and (data["longer"] or data["dropped"] or data["untrainable"]):
        cut = data["longer"] - data["dropped"]
        told = [f"{cut} cut at sequence_len"] if cut > 0 else []
        told += [f"{data['dropped']} dropped"] if data["dropped"] else []
        told += [f"{data['untrainable']} without an assistant token left, dropped"] if data["untrainable"] else []
        lines.append(f"  of {data['examples']} examples ({data['tokens']:,} tokens): {', '.join(told)}")
    if manifest["starts"] and manifest["starts"] > 1:
        lines.append(f"  started {manifest['starts']} times: it resumed from its checkpoints")
    if manifest["rehearsal"]:
        lines.append(
            "  This was a rehearsal with a tiny random model. For the real one, name your GPU host: "
            f"ansible-playbook -i inventory/ssh.yml train.yml -e role={agent}"
        )
    return lines


def failure_reason(run: dict[str, Any], failures: dict[str, str]) -> str:
    """Why a run is not there, as far as it was told; see :func:`not_ready_lines`.

    Where a host of a gang failed, the first one knows no more than that it was stopped.
    """
    member = next((host for host in run.get("hosts", ()) if host != run["trainer"] and host in failures), "")
    if member:
        return failures[member] if failures[member].startswith(member) else f"{member}: {failures[member]}"
    return failures.get(run["run_id"]) or failures.get(run["trainer"]) or ""


def is_under_way(run: dict[str, Any], launched: dict[str, list[str]], failures: dict[str, str]) -> bool:
    """Whether a run that nobody waits for trains, as far as is known.

    Args:
        run: The planned run.
        launched: The run ids that were launched, by host.
        failures: See :func:`not_ready_lines`.
    """
    hosts = run.get("hosts") or [run["trainer"]]
    return not failure_reason(run, failures) and all(run["run_id"] in launched.get(host, []) for host in hosts)


def not_ready_lines(run: dict[str, Any], failures: dict[str, str]) -> list[str]:
    """The lines for a run that was wanted, and is not verified.

    Args:
        run: The planned run.
        failures: What went wrong, by run id, or by trainer where no run of it was begun.
    """
    lost = f"{run['trainer']} was lost on the way; the same command goes on, -e move={run['trainer']} goes elsewhere"
    said = failure_reason(run, failures).strip().splitlines() or [lost]
    return [f"{run['name']} is not ready: {run['run_id']} on {run['trainer']}: {said[0]}"]


def tally_lines(runs: list[dict[str, Any]], lacking: list[str]) -> list[str]:
    """How many of several runs are verified, and what to do about the others.

    Args:
        runs: The planned runs.
        lacking: Run ids that were wanted and are not verified.
    """
    if len(runs) < 2 or not lacking:
        return []
    return ["", f"{len(runs) - len(lacking)} of {len(runs)} are verified. The same command goes on with the others; "
            f"-e move=<trainer> starts what a lost trainer had on another one"]  # fmt: skip
