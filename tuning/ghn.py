"""The alignment's hypernetwork: its decoder, its latents, how it is trained, rounds of DAgger.

nnit tune tuning/ghn.py configs/quickstart.yaml
"""

from ray import tune

STAGE = "align"
SPACE = {
    "align.ghn.channels": tune.choice([[64, 48, 32, 24], [96, 64, 48, 32], [128, 96, 64, 32]]),
    "align.ghn.latent_dim": tune.choice([4, 8, 16]),
    "align.ghn.embed_dim": tune.choice([64, 96, 128]),
    "align.ghn.smoothness": tune.uniform(1.0, 6.0),
    "align.distill.dagger_rounds": tune.choice([0, 1, 2, 3]),
    "align.distill.lr": tune.loguniform(5e-4, 5e-3),
    "align.distill.weight_noise": tune.uniform(0.0, 0.08),
    "align.distill.condition_width_noise": tune.uniform(0.0, 4.0),
    "align.distill.condition_depth_noise": tune.uniform(0.0, 1.0),
    "align.distill.best_share": tune.uniform(0.3, 1.0),
    "align.distill.kl_weight": tune.loguniform(1e-5, 1e-3),
}
