"""Room `algorithms`: `start / ask / learn` over sealed sums, and `local`, their half at a site. Imports `vector`."""

from cloister.algorithms import evaluation
from cloister.algorithms.base import Algorithm, from_json
from cloister.algorithms.cyclic import Cyclic
from cloister.algorithms.ditto import Ditto
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.fedbuff import FedBuff
from cloister.algorithms.feddyn import FedDyn
from cloister.algorithms.fednova import FedNova
from cloister.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from cloister.algorithms.fedprox import FedProx
from cloister.algorithms.fltrust import FLTrust
from cloister.algorithms.local import Curvature, Site, Terms, Trained
from cloister.algorithms.newton import Newton
from cloister.algorithms.partial import FedBN, FedRep, PartialSharing
from cloister.algorithms.preparation import Preparation
from cloister.algorithms.robust import CentredClipping, GeometricMedian, Krum, Median, TrimmedMean
from cloister.algorithms.scaffold import SCAFFOLD
from cloister.algorithms.schedule import CosineDecay, InverseDecay, StepDecay

__all__ = [
    "Algorithm",
    "CentredClipping",
    "CosineDecay",
    "Curvature",
    "Cyclic",
    "Ditto",
    "FLTrust",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBN",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedRep",
    "FedYogi",
    "GeometricMedian",
    "InverseDecay",
    "Krum",
    "Median",
    "Newton",
    "PartialSharing",
    "Preparation",
    "SCAFFOLD",
    "Site",
    "StepDecay",
    "Terms",
    "Trained",
    "TrimmedMean",
    "evaluation",
    "from_json",
]
