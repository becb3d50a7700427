"""Room `privacy`: clipping, and what a result may claim. Imports only `vector`."""

from cloister.privacy.clip import clip_l2, l2_norm
from cloister.privacy.statement import PrivacyStatement

__all__ = ["PrivacyStatement", "clip_l2", "l2_norm"]
