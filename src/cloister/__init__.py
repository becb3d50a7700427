"""cloister: federated learning that secures model training. Only a share of a sealed sum ever leaves a site.

    import cloister as cl
    job = cl.Job(data=cl.Table("heart", target="disease"), task=cl.Torch(...), algorithm=cl.FedAvg(rounds=20))
    result = cl.simulate(job, data, sites=10)

Names are resolved on first use, so `import cloister` costs neither torch nor a web server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.algorithms import (
        SCAFFOLD,
        CentredClipping,
        CosineDecay,
        Cyclic,
        Ditto,
        FedAdagrad,
        FedAdam,
        FedAvg,
        FedAvgM,
        FedBN,
        FedBuff,
        FedDyn,
        FedNova,
        FedProx,
        FedRep,
        FedYogi,
        FLTrust,
        GeometricMedian,
        InverseDecay,
        Krum,
        Median,
        Newton,
        PartialSharing,
        StepDecay,
        TrimmedMean,
    )
    from cloister.job import (
        SGD,
        Adam,
        AdaptiveClip,
        Arrays,
        Evaluate,
        Impute,
        Job,
        OneHot,
        RowDP,
        SiteDP,
        Sklearn,
        Standardize,
        Table,
        Torch,
        load_job,
        nets,
    )
    from cloister.learn.result import Result
    from cloister.simulation.simulate import simulate
    from cloister.simulation.sweep import sweep
    from cloister.vector.errors import CloisterError

__version__ = "0.1.0"

_HOMES = {
    "Adam": "job",
    "AdaptiveClip": "job",
    "Arrays": "job",
    "CentredClipping": "algorithms",
    "CloisterError": "vector",
    "CosineDecay": "algorithms",
    "Cyclic": "algorithms",
    "Ditto": "algorithms",
    "Evaluate": "job",
    "FLTrust": "algorithms",
    "FedAdagrad": "algorithms",
    "FedAdam": "algorithms",
    "FedAvg": "algorithms",
    "FedAvgM": "algorithms",
    "FedBN": "algorithms",
    "FedBuff": "algorithms",
    "FedDyn": "algorithms",
    "FedNova": "algorithms",
    "FedProx": "algorithms",
    "FedRep": "algorithms",
    "FedYogi": "algorithms",
    "GeometricMedian": "algorithms",
    "Impute": "job",
    "InverseDecay": "algorithms",
    "Job": "job",
    "Krum": "algorithms",
    "Median": "algorithms",
    "Newton": "algorithms",
    "OneHot": "job",
    "PartialSharing": "algorithms",
    "Result": "learn.result",
    "RowDP": "job",
    "SCAFFOLD": "algorithms",
    "SGD": "job",
    "SiteDP": "job",
    "Sklearn": "job",
    "Standardize": "job",
    "StepDecay": "algorithms",
    "Table": "job",
    "Torch": "job",
    "TrimmedMean": "algorithms",
    "load_job": "job",
    "nets": "job",
    "simulate": "simulation",
    "sweep": "simulation.sweep",
}

__all__ = [
    "Adam",
    "AdaptiveClip",
    "Arrays",
    "CentredClipping",
    "CloisterError",
    "CosineDecay",
    "Cyclic",
    "Ditto",
    "Evaluate",
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
    "Impute",
    "InverseDecay",
    "Job",
    "Krum",
    "Median",
    "Newton",
    "OneHot",
    "PartialSharing",
    "Result",
    "RowDP",
    "SCAFFOLD",
    "SGD",
    "SiteDP",
    "Sklearn",
    "Standardize",
    "StepDecay",
    "Table",
    "Torch",
    "TrimmedMean",
    "load_job",
    "nets",
    "simulate",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cloister' has no attribute {name!r}")
    value = getattr(import_module(f"cloister.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
