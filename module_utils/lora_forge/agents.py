"""Who is trained."""

from __future__ import annotations

AGENTS = ("crew", "deacon", "gastown", "mayor", "polecat", "refinery", "witness")
SHARED_AGENT = "gastown"  # the shared adapter over all the others
