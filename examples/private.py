"""Breast cancer with differential privacy: the model hardly depends on any one patient. Ships no code.

The ranges say what cell nuclei may measure, not what these patients' do: statistics of the data would cost privacy.
"""

import cloister as cl

RANGES = {
    "mean_radius": (5, 30),
    "mean_texture": (8, 40),
    "mean_perimeter": (40, 200),
    "mean_area": (100, 2500),
    "mean_smoothness": (0.04, 0.18),
    "mean_compactness": (0, 0.35),
    "mean_concavity": (0, 0.45),
    "mean_concave_points": (0, 0.2),
    "mean_symmetry": (0.1, 0.3),
    "mean_fractal_dimension": (0.04, 0.1),
    "worst_radius": (5, 40),
    "worst_concave_points": (0, 0.3),
}

job = cl.Job(
    data=cl.Table("breast-cancer", target="malignant", columns=dict.fromkeys(RANGES, "number")),
    prepare=[cl.Standardize(ranges=RANGES)],
    task=cl.Torch(cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=1.0), epochs=1, batch_size=45),
    algorithm=cl.FedAvg(rounds=10),
    privacy=cl.RowDP(epsilon=4, delta=1e-5, clip=1.0),
)
