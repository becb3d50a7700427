"""Room `coordinator`: invites and admits members, orders the rounds, and stores what can be shown to anybody."""

from cloister.coordinator.folder import init_coordinator
from cloister.coordinator.membership import admit, invite, pending
from cloister.coordinator.serve import serve

__all__ = ["admit", "init_coordinator", "invite", "pending", "serve"]
