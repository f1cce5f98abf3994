"""Measurements against other implementations; `make bench` runs them and writes results.md."""
