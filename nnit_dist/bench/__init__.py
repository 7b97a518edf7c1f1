"""Benchmarks, run by `nnit bench`: figures that vary by machine, each beside its yardstick."""
