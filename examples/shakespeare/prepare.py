"""Turns speeches into one file of rows for each speaking role.

    python examples/shakespeare/prepare.py SPEECHES FOLDER

SPEECHES is a CSV file (.gz or not) with the columns play, role, speech. A role with two speeches or more becomes a
site: its first four fifths are to train on, the rest are its test set, as in McMahan et al. 2017
(https://arxiv.org/abs/1602.05629). FOLDER gets PLAY-NUMBER.npz for each: x float32[rows, 80], codes of characters;
y int64[rows], the code of the one that comes next; test bool[rows].
"""

import argparse
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

LENGTH = 80  # characters of a row
ALPHABET = " \n,.;:?!'-" + string.ascii_letters  # codes from 1; 0 is padding, and whatever is rare
CODES = {character: code for code, character in enumerate(ALPHABET, start=1)}

Rows = tuple[np.ndarray, np.ndarray]


def rows_of(speeches: list[str]) -> Rows:
    """Cut one after the other, so that each character is predicted once; padded in front."""
    codes = [CODES.get(character, 0) for character in "\n".join(speeches)]
    codes = [0] * (-(len(codes) - 1) % LENGTH) + codes
    ends = range(LENGTH, len(codes), LENGTH)
    x = [codes[end - LENGTH : end] for end in ends]
    return np.array(x, np.float32).reshape(-1, LENGTH), np.array([codes[end] for end in ends], np.int64)


def sites(speeches: Path) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Name, and x, y, test, of each role that has rows of both kinds."""
    table = pd.read_csv(speeches, keep_default_na=False)
    for number, ((play, _), said) in enumerate(table.groupby(["play", "role"], sort=True)["speech"]):
        cut = max(1, int(0.8 * len(said)))
        train, test = rows_of(said.tolist()[:cut]), rows_of(said.tolist()[cut:])
        if len(train[1]) and len(test[1]):
            x, y = (np.concatenate(parts) for parts in zip(train, test, strict=True))
            yield f"{play}-{number}", (x, y, np.arange(len(y)) >= len(train[1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speeches", type=Path, help="CSV file with play, role, speech")
    parser.add_argument("folder", type=Path, help="folder to write the files to")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, (x, y, test) in sites(arguments.speeches):
        np.savez(arguments.folder / f"{name}.npz", x=x, y=y, test=test)
        count += 1
    print(f"{count} roles in {arguments.folder}")
