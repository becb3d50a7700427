"""Room `algorithms`: pure `start / ask / learn` over sealed sums. Imports only `vector`."""

from cloister.algorithms import evaluation
from cloister.algorithms.base import Algorithm, from_json
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.preparation import Preparation

__all__ = ["Algorithm", "FedAvg", "Preparation", "evaluation", "from_json"]
