"""Room `learn`: turns a job's specifications into computations on one site's table. torch and sklearn load lazily."""

from cloister.learn.models import build_model, complete, predict
from cloister.learn.tables import check, read_table, schema
from cloister.learn.trainer import Trainer

__all__ = ["Trainer", "build_model", "check", "complete", "predict", "read_table", "schema"]
