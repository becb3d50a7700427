"""Heart disease at four hospitals: logistic regression, with the settings of the FLamby benchmark.

15 rounds of 100 local steps with 4 rows each; every hospital standardises by its own training rows. Plain mean of
the hospitals' accuracies that FLamby publishes: 0.685 for FedAvg (learning rate 0.001), 0.735 for pooled training.
"""

import cloister as cl

NUMBERS = ["age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"]

job = cl.Job(
    data=cl.Table(
        "heart",
        target="disease",
        columns={**dict.fromkeys(NUMBERS, "number"), "cp": [1, 2, 3, 4], "restecg": [0, 1, 2]},
        split="split",
    ),
    prepare=[cl.OneHot(drop_first=True), cl.Standardize(by="site")],
    task=cl.Torch(cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.01), steps=100, batch_size=4),
    algorithm=cl.FedAvg(rounds=15),
    evaluate=cl.Evaluate(every=5),
    seed=42,
)
