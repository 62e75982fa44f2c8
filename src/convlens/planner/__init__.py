"""From a problem to a plan: candidates → estimate → measure → remember → choose, with the reason."""

from __future__ import annotations

from convlens.planner.choose import Candidate, Plan, execute, machine, pin, plan, unpin, used
from convlens.planner.files import load_plans, save_plans
from convlens.planner.fused import COMPOSED, COMPOSED_BY_VENDOR, fastest_block
from convlens.planner.keys import from_key, to_key
from convlens.planner.machine import Machine, processor_name
from convlens.planner.prepared import FINISHES, Bound, bind, fastest_in_place, fastest_of
from convlens.planner.settings import get_precision, set_batch_invariant, set_precision, set_workspace_limit
from convlens.planner.store import Store, default_store
from convlens.planner.timing import Timing, interleaved

__all__ = [
    "COMPOSED",
    "COMPOSED_BY_VENDOR",
    "FINISHES",
    "Bound",
    "Candidate",
    "Machine",
    "Plan",
    "Store",
    "Timing",
    "bind",
    "default_store",
    "execute",
    "fastest_block",
    "fastest_in_place",
    "fastest_of",
    "from_key",
    "get_precision",
    "interleaved",
    "load_plans",
    "machine",
    "pin",
    "plan",
    "processor_name",
    "save_plans",
    "set_batch_invariant",
    "set_precision",
    "set_workspace_limit",
    "to_key",
    "unpin",
    "used",
]
