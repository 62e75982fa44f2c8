"""From a problem to a plan: candidates, the choice among them, and the reason for it."""

from __future__ import annotations

from convlens.planner.plan import Candidate, Plan, execute, plan

__all__ = ["Candidate", "Plan", "execute", "plan"]
