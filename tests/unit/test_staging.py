"""What goes to a host is laid out first, and is what was planned."""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import shutil
import sys
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "library"))
import staging


def lay_out(monkeypatch: pytest.MonkeyPatch, files: list[dict[str, Any]]) -> dict[str, Any]:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with patch_module_args({"files": files}), pytest.raises(SystemExit):
        staging.main()
    return json.loads(out.getvalue())


def test_each_file_stands_at_its_place(tmp_path, monkeypatch):
    source = tmp_path / "a.jsonl"
    source.write_text("{}\n")
    sha256 = hashlib.sha256(b"{}\n").hexdigest()
    found = lay_out(monkeypatch, [
        {"path": f"datasets/{sha256}/a.jsonl", "src": str(source), "sha256": sha256},
        {"path": "runs/w-1/axolotl.yml", "content": "seed: 42\n"},
    ])  # fmt: skip
    tree = pathlib.Path(found["tree"])
    assert (tree / "datasets" / sha256 / "a.jsonl").read_text() == "{}\n"
    assert (tree / "runs/w-1/axolotl.yml").read_text() == "seed: 42\n"
    assert (found["bytes"], found["changed"]) == (12, False)
    shutil.rmtree(tree)


@pytest.mark.parametrize(("text", "words"), [(None, "is gone"), ("[]", "was changed after the run was planned")])
def test_what_is_not_as_it_was_planned_is_refused(tmp_path, monkeypatch, text, words):
    source = tmp_path / "a.jsonl"
    if text is not None:
        source.write_text(text)
    found = lay_out(monkeypatch, [{"path": "a.jsonl", "src": str(source), "sha256": "0" * 64}])
    assert found["failed"]
    assert str(source) in found["msg"]
    assert words in found["msg"]
    assert "nothing was started" in found["msg"].lower()
