"""Benchmarks, run by `nnit bench`; each compares its figures with a reference."""
