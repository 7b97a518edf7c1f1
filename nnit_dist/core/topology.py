"""The topology of an MLP policy: its layer sizes and activation."""

import itertools
from dataclasses import dataclass
from operator import index
from typing import Literal, get_args

from nnit_dist.core.errors import NnitError, nearest

INPUT, HIDDEN, OUTPUT = range(3)  # kinds of layers
Hidden = tuple[int, ...]
Activation = Literal["tanh", "relu", "elu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
MOST_WIDTH, MOST_DEPTH = 16384, 64  # of what a model may write


@dataclass(frozen=True, order=True)
class Topology:
    """An MLP: `obs_dim` inputs, layers of the `hidden` widths, `act_dim` linear outputs.

    All hidden layers have the same activation: tanh, ReLU, ELU (with alpha 1) or SiLU.

    Raises:
        NnitError: a size is not positive, there is no hidden layer, or the activation is unknown.
    """

    obs_dim: int
    hidden: Hidden
    act_dim: int
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        check_activation(self.activation)
        if type(self.hidden) is not tuple or {*map(type, self.dims)} != {int}:
            self._make_plain()
        if not self.hidden or min(self.hidden) < 1 or self.obs_dim < 1 or self.act_dim < 1:
            raise NnitError(f"a topology needs a hidden layer and positive sizes; got {self}.")

    def _make_plain(self) -> None:
        """Replace lists and numpy's integers, which would make equal topologies differ."""
        try:
            obs_dim, *hidden, act_dim = map(index, (self.obs_dim, *self.hidden, self.act_dim))
        except TypeError:
            raise NnitError(f"sizes of layers are whole numbers; got {self}.") from None
        for name, value in {
            "obs_dim": obs_dim,
            "hidden": tuple(hidden),
            "act_dim": act_dim,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def dims(self) -> tuple[int, ...]:
        """Layer sizes from input to output."""
        return (self.obs_dim, *self.hidden, self.act_dim)

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.hidden)

    @property
    def num_layers(self) -> int:
        """Number of weight matrices: hidden layers and the output layer."""
        return self.depth + 1

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every weight matrix, first layer first."""
        return [(out, fan_in) for fan_in, out in itertools.pairwise(self.dims)]

    def layer_kind(self, layer: int) -> int:
        """INPUT for the first weight matrix, OUTPUT for the last, HIDDEN for those between."""
        return INPUT if layer == 0 else OUTPUT if layer == self.depth else HIDDEN

    @property
    def num_params(self) -> int:
        """Number of weights and biases."""
        return sum(out * fan_in + out for out, fan_in in self.shapes)

    @property
    def name(self) -> str:
        """The hidden widths, and the activation unless it is tanh, such as `40x56-relu`."""
        return architecture_name(self.hidden, self.activation)


def check_activation(name: str) -> Activation:
    """`name` as an activation; NnitError if there is no such activation."""
    for activation in ACTIVATIONS:
        if name == activation:
            return activation
    raise NnitError(
        f"there is no activation {str(name)[:40]!r}; use {', '.join(ACTIVATIONS)}."
        f"{nearest(str(name)[:40], ACTIVATIONS)}"
    )


def architecture_name(hidden: Hidden, activation: Activation) -> str:
    """`(40, 56), "relu"` -> `40x56-relu`; tanh is left out."""
    return hidden_name(hidden) + f"-{activation}" * (activation != "tanh")


def parse_architecture(text: str) -> tuple[Hidden, Activation]:
    """`40x56-relu` -> `(40, 56), "relu"`; without an activation it is tanh.

    Raises:
        NnitError: the text has another form.
    """
    hidden, separator, activation = text.partition("-")
    return parse_hidden(hidden), check_activation(activation if separator else "tanh")


def hidden_name(hidden: Hidden) -> str:
    """`(40, 56)` -> `40x56`."""
    return "x".join(map(str, hidden))


def hidden_from(value: object) -> Hidden:
    """Hidden widths from a value of a JSON file.

    Raises:
        ValueError: it is not a list of whole numbers from 1 up.
    """
    if not isinstance(value, list) or not all(type(w) is int and w > 0 for w in value) or not value:
        raise ValueError(f"hidden={str(value)[:40]}")
    return tuple(value)


def parse_hidden(text: str) -> Hidden:
    """`40x56` -> `(40, 56)`.

    Raises:
        NnitError: the text has another form, or a width is not positive.
    """
    try:
        hidden = tuple(int(width) for width in text.lower().split("x"))
    except ValueError:
        hidden = ()
    if not hidden or min(hidden) < 1:
        raise NnitError(f"cannot read the hidden widths {text!r}; write them as 64 or 40x56.")
    return hidden
