"""The alignment's hypernetwork: its decoder, its latents, and how it is trained.

nnit tune tuning/ghn.py configs/quickstart.yaml
"""

from ray import tune

STAGE = "align"
SPACE = {
    "align.ghn.latent_dim": tune.choice([4, 8, 16]),
    "align.ghn.embed_dim": tune.choice([64, 96, 128]),
    "align.ghn.smoothness": tune.uniform(1.0, 6.0),
    "align.distill.lr": tune.loguniform(5e-4, 5e-3),
    "align.distill.weight_noise": tune.uniform(0.0, 0.08),
    "align.distill.width_jitter": tune.uniform(0.0, 4.0),
    "align.distill.depth_jitter": tune.uniform(0.0, 1.0),
    "align.distill.best_share": tune.uniform(0.3, 1.0),
    "align.distill.kl_weight": tune.loguniform(1e-5, 1e-3),
}
