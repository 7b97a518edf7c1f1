"""NNiT: how large, how it is trained, how it is sampled.

nnit tune tuning/nnit.py configs/quickstart.yaml
"""

from ray import tune

STAGE = "train"
SPACE = {
    "nnit.transformer.width": tune.choice([128, 192, 256, 320]),
    "nnit.transformer.depth": tune.choice([2, 3, 4, 6]),
    "nnit.patch": tune.choice([4, 8, 16]),
    "nnit.lr": tune.loguniform(3e-4, 4e-3),
    "nnit.ema": tune.choice([0.98, 0.99, 0.995, 0.998]),
    "nnit.condition_width_noise": tune.uniform(0.0, 4.0),
    "nnit.condition_depth_noise": tune.uniform(0.0, 1.0),
    "nnit.logit_mean": tune.uniform(-1.0, 1.0),
    "nnit.logit_std": tune.uniform(0.5, 1.5),
    "nnit.best_share": tune.uniform(0.3, 1.0),
    "nnit.architectures": tune.choice([8, 16, 32]),
    "generate.sampler_steps": tune.choice([2, 4, 8, 16]),
    "generate.guidance": tune.choice([0.0, 0.2, 0.5, 1.0]),
}
