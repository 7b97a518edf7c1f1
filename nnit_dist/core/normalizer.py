"""Whitening of a policy's inputs, folded into its first layer.

Observations mix metres, radians and quaternions. Networks that are written for
whitened observations are easier to fit and to generate; folding turns them into
ordinary policies that take raw observations, and unfolding is its exact inverse.
"""

from dataclasses import dataclass

import numpy as np

# Nearly constant inputs keep a gain that cannot blow up off the training states.
MIN_STD = 0.02


@dataclass(frozen=True)
class ObservationNormalizer:
    """Mean and standard deviation per observation dimension, float32 [obs_dim]."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, observations: np.ndarray) -> "ObservationNormalizer":
        """From observations [N, obs_dim]."""
        std = np.maximum(observations.std(0), MIN_STD)
        return cls(observations.mean(0).astype(np.float32), std.astype(np.float32))

    def apply(self, observations: np.ndarray) -> np.ndarray:
        return (observations - self.mean) / self.std

    def fold(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> list:
        """Layers for whitened inputs -> the same function of raw inputs."""
        weight, bias = layers[0]
        raw = weight / self.std
        return [(raw, bias - raw @ self.mean), *layers[1:]]

    def unfold(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> list:
        """Inverse of `fold`."""
        weight, bias = layers[0]
        return [(weight * self.std, bias + weight @ self.mean), *layers[1:]]
