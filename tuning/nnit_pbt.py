"""NNiT's training and sampling, on a schedule that is found while it trains.

nnit tune tuning/nnit_pbt.py configs/quickstart.yaml --scheduler pbt --trials 8
"""

from ray import tune

STAGE = "train"
SPACE = {
    "nnit.lr": tune.loguniform(3e-4, 4e-3),
    "nnit.ema": tune.choice([0.98, 0.99, 0.995, 0.998]),
    "nnit.condition_width_noise": tune.uniform(0.0, 4.0),
    "nnit.condition_depth_noise": tune.uniform(0.0, 1.0),
    "nnit.logit_mean": tune.uniform(-1.0, 1.0),
    "nnit.logit_std": tune.uniform(0.5, 1.5),
    "nnit.best_share": tune.uniform(0.3, 1.0),
    "nnit.architecture_weight": tune.loguniform(0.01, 0.3),
    "generate.guidance": tune.choice([0.0, 0.2, 0.5, 1.0]),
}
