"""A planted bug, for the suite to find: a site that answers a second survivor set as if it had answered none."""

import sys
from pathlib import Path

from cloister.seal import SealClient, labels
from cloister.seal.state import SitePhase
from cloister.site import run_agent, runs


class Forgetful(SealClient):
    """Skips the check that a site answers one survivor set a round, and does not erase the shares it released."""

    def _next_phase(self, label, data):
        after = {labels.SURVIVORS: SitePhase.AGREED, labels.CONSISTENCY: SitePhase.UNMASKED}
        return after.get(label) or super()._next_phase(label, data)

    def _consistency(self, data):
        kept = dict(self._shares)
        answer = super()._consistency(data)
        self._shares = kept
        return answer


class Careless:
    """A journal that forgets what a site may say only once."""

    def once(self, slot, value):
        pass


def make(*args, journal, **settings):
    return Forgetful(*args, journal=Careless(), **settings)


runs.SealClient = make
run_agent(Path(sys.argv[1]))
