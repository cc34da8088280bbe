"""Who is trained."""

from __future__ import annotations

AGENTS = ("crew", "deacon", "gastown", "mayor", "polecat", "refinery", "witness")
EVERYBODY = "gastown"  # the shared adapter over all the others
