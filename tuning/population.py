"""The population: PPO's settings, by the success of what is trained within the budget of env steps.

nnit tune tuning/population.py configs/quickstart.yaml
"""

from ray import tune

STAGE = "population"
SPACE = {
    "population.recipe.lr": tune.loguniform(2e-4, 2e-3),
    "population.recipe.batch": tune.choice([1024, 2048, 4096]),
    "population.recipe.minibatch": tune.choice([128, 256, 512]),
    "population.recipe.epochs": tune.choice([5, 10, 15]),
    "population.recipe.gamma": tune.choice([0.8, 0.9, 0.95]),
    "population.recipe.gae_lambda": tune.choice([0.8, 0.9, 0.95]),
    "population.recipe.max_kl": tune.loguniform(0.01, 0.2),
    "population.recipe.entropy_coeff": tune.uniform(0.0, 0.02),
}
