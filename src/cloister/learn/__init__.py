"""Room `learn`: turns a job's specifications into computations on one site's table. torch and sklearn load lazily."""

from cloister.learn.arrays import Examples, read_data, schema
from cloister.learn.memory import InFolder
from cloister.learn.models import build_model, complete, predict
from cloister.learn.profile import profile
from cloister.learn.tables import check, read_table
from cloister.learn.trainer import Trainer, Workshop

__all__ = [
    "Examples",
    "InFolder",
    "Trainer",
    "Workshop",
    "build_model",
    "check",
    "complete",
    "predict",
    "profile",
    "read_data",
    "read_table",
    "schema",
]
