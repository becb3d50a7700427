"""Room `job`: a job and its declarative specifications, manifest, bundle and digest. Computes nothing."""

from cloister.job import nets
from cloister.job.data import Arrays, Table
from cloister.job.job import Evaluate, Job
from cloister.job.load import load_job
from cloister.job.prepare import Impute, OneHot, Standardize
from cloister.job.privacy import AdaptiveClip, RowDP, SiteDP
from cloister.job.task import SGD, Adam, Sklearn, Torch

__all__ = [
    "Adam",
    "AdaptiveClip",
    "Arrays",
    "Evaluate",
    "Impute",
    "Job",
    "OneHot",
    "RowDP",
    "SGD",
    "SiteDP",
    "Sklearn",
    "Standardize",
    "Table",
    "Torch",
    "load_job",
    "nets",
]
