"""The normalizer of observations, which can be folded into a policy's first layer.

Observations mix meters, radians and quaternions. Networks for normalized observations are easier to
fit and to generate. Folding turns them into policies that take raw observations; unfolding is its
inverse.
"""

from dataclasses import dataclass

import numpy as np

# Bounds the gain of nearly constant inputs, which may vary more outside the training states.
MIN_STD = 0.02

Layers = list[tuple[np.ndarray, np.ndarray]]  # (weight [out, in], bias [out]) of each layer


@dataclass(frozen=True)
class ObservationNormalizer:
    """Mean and standard deviation per observation dimension, float32 [obs_dim]."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, observations: np.ndarray) -> "ObservationNormalizer":
        """The normalizer of observations [N, obs_dim]."""
        std = np.maximum(observations.std(0), MIN_STD)
        return cls(observations.mean(0).astype(np.float32), std.astype(np.float32))

    def apply(self, observations: np.ndarray) -> np.ndarray:
        """Normalized observations [..., obs_dim]."""
        return (observations - self.mean) / self.std

    def fold(self, layers: Layers) -> Layers:
        """Turn layers that take normalized observations into ones that take raw observations."""
        weight, bias = layers[0]
        raw = weight / self.std
        return [(raw, bias - raw @ self.mean), *layers[1:]]

    def unfold(self, layers: Layers) -> Layers:
        """The inverse of `fold`."""
        weight, bias = layers[0]
        return [(weight * self.std, bias + weight @ self.mean), *layers[1:]]
