"""Turns the four UCI heart-disease files into one table for each hospital, as the FLamby benchmark does.

    python examples/heart/prepare.py SOURCE FOLDER

SOURCE holds processed.cleveland.data, processed.hungarian.data, processed.switzerland.data and processed.va.data
from https://archive.ics.uci.edu/dataset/45/heart+disease (CC BY 4.0; A. Janosi, W. Steinbrunn, M. Pfisterer,
R. Detrano). FOLDER gets cleveland.csv, hungarian.csv, switzerland.csv and va.csv.

What FLamby does (Ogier du Terrail et al., NeurIPS 2022, https://arxiv.org/abs/2210.04620): drop slope, ca and thal,
drop every row with a missing value, call any degree of disease 1, and train on 66 % of each hospital's rows.
"""

import argparse
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
COLUMNS = [
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
]
DROPPED = ["slope", "ca", "thal"]


def table(file: Path) -> pd.DataFrame:
    """One hospital's complete rows, with columns `disease` (0 or 1) and `split` ("train" or "test")."""
    rows = pd.read_csv(file, names=COLUMNS, na_values="?").drop(columns=DROPPED).dropna().reset_index(drop=True)
    rows["disease"] = (rows.pop("num") > 0).astype(int)
    stratify = rows["disease"] if rows["disease"].value_counts().min() > 1 else None  # Switzerland: one healthy row
    train, _ = train_test_split(rows.index, train_size=0.66, random_state=43, stratify=stratify)
    rows["split"] = "test"
    rows.loc[train, "split"] = "train"
    return rows


def prepare(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for hospital in HOSPITALS:
        rows = table(source / f"processed.{hospital}.data")
        rows.to_csv(folder / f"{hospital}.csv", index=False)
        print(f"{hospital}.csv: {len(rows)} rows, {int((rows['split'] == 'train').sum())} of them for training")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the four processed.*.data files")
    parser.add_argument("folder", type=Path, help="folder to write the tables to")
    arguments = parser.parse_args()
    prepare(arguments.source, arguments.folder)
