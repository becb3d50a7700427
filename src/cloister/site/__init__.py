"""Room `site`: the agent beside the data, and the process in which it lets training code run.

Importing it costs neither torch nor pandas: names are resolved on first use, and the worker needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.site.agent import run, run_agent
    from cloister.site.enrol import join
    from cloister.site.steward import approve, deny, status

_HOMES = {
    "approve": "steward",
    "deny": "steward",
    "join": "enrol",
    "run": "agent",
    "run_agent": "agent",
    "status": "steward",
}

__all__ = ["approve", "deny", "join", "run", "run_agent", "status"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cloister.site' has no attribute {name!r}")
    return getattr(import_module(f"cloister.site.{_HOMES[name]}"), name)
