"""Who is trained."""

from __future__ import annotations

AGENTS = ("crew", "deacon", "gastown", "mayor", "polecat", "refinery", "witness")
SHARED_AGENT = "gastown"  # whose adapter is shared: it learns from the data of all the others
