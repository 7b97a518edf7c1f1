"""Search of hyperparameters by Ray Tune, against success that is measured in the simulator."""
