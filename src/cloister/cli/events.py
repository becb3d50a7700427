"""Events of a run, a site or a simulation as sentences for people; `--json` prints them as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Event = Mapping[str, Any]
METRICS = ("accuracy", "auc", "loss", "rmse", "mae")
STYLES = {
    "refused": "yellow",
    "void": "yellow",
    "warning": "yellow",
    "failed": "red",
    "stopped": "red",
    "done": "green",
}


def sentence(event: Event) -> str | None:
    """What happened, in one line; None for steps that only matter when something goes wrong."""
    tell = _SENTENCES.get(str(event.get("event")))
    return None if tell is None else " ".join(tell(event).split())


def style(event: Event) -> str:
    return STYLES.get(str(event.get("event")), "")


def measured(event: Event) -> str:
    """The metrics that a round brought."""
    return "  ".join(f"{name} {event[name]:.3f}" for name in METRICS if isinstance(event.get(name), float))


def _round(event: Event) -> str:
    what = f"round {event['trained']}" if event["stage"] == "train" else event["stage"]
    took = sum((event.get("seconds") or {}).values())
    return f"{what}: {event['survivors']} of {event['sites']} sites, {took:.2f} s {measured(event)}"


def _message(event: Event) -> str:
    message, mend = str(event.get("message", "")), str(event.get("mend", ""))
    return message if mend in message else f"{message} {mend}"


def _waiting(event: Event) -> str:
    if "needed" not in event:
        return _message(event)
    review = event.get("review") or ()
    stewards = f"; stewards read the job at {', '.join(review)}" if review else ""
    return f"waiting for sites: {len(event.get('sites') or ())} there, {event['needed']} needed{stewards}"


def _refused(event: Event) -> str:
    what = f" dataset {event['dataset']}" if "dataset" in event else ""
    if event.get("scope") == "waiting":
        return f"{event.get('site', '')} reads the job first: {event.get('message', '')}"
    return f"{event.get('site', '')} refused{what}: {_message(event)}"


_SENTENCES: Mapping[str, Callable[[Event], str]] = {
    "submitted": lambda event: f"job {event['name']} of {event['analyst']} submitted",
    "waiting": _waiting,
    "round": _round,
    "refused": _refused,
    "void": lambda event: f"round {event.get('round')} was void: {_message(event)}",
    "approved": lambda event: f"{event.get('site', '')} approved the job",
    "done": lambda event: "the run is done",
    "failed": lambda event: f"the run failed: {_message(event)}",
    "stopped": lambda event: "the run was stopped",
    # of a site
    "ready": lambda event: f"ready; offers {', '.join(event.get('datasets') or ()) or 'no dataset'}",
    "retry": _message,
    "warning": _message,
    "job": lambda event: f"job {event['name']} of {event['analyst']} may run here",
    "page": lambda event: f"review in your browser: {event['url']} (Ctrl-C ends it)",
    "review": lambda event: (
        f"job {event['name']} of {event['analyst']} waits for you: `cloister site review`, {event['job'][:12]}"
    ),
    "receipt": lambda event: (
        f"sealed round {event['round']}: summed over {event['survivors']} sites, receipt verified"
    ),
    "late": lambda event: f"sealed round {event['round']}: too late: {_message(event)}",
    # of a simulation
    "baseline": lambda event: f"baseline: {event['model']}",
}
