"""Breast cancer, malignant or benign, from 30 measurements of cell nuclei. A declarative job: it ships no code."""

import cloister as cl

job = cl.Job(
    data=cl.Table("breast-cancer", target="malignant"),
    prepare=[cl.Impute(), cl.Standardize()],
    task=cl.Torch(cl.nets.MLP([32]), loss="bce", optimizer=cl.SGD(lr=0.1), epochs=1, batch_size=32),
    algorithm=cl.FedAvg(rounds=20),
)
