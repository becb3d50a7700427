"""The table that comes with scikit-learn: real rows for a first run, without a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

TARGET = "malignant"
NAME = "breast-cancer"


def breast_cancer() -> pd.DataFrame:
    """569 rows, 30 numeric features, target "malignant" (0 or 1).

    W. N. Street, W. H. Wolberg, O. L. Mangasarian 1993, "Nuclear feature extraction for breast tumor diagnosis".
    """
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer(as_frame=True)
    frame: pd.DataFrame = loaded.frame.rename(columns=lambda name: name.replace(" ", "_"))
    return frame.assign(**{TARGET: 1 - frame["target"]}).drop(columns="target")
