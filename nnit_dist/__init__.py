"""nnit_dist: writes working neural networks for any MLP topology instead of training them."""

__version__ = "0.1.0"
