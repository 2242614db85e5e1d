"""What the figures in README.md come from; `python -m benchmarks` runs them all."""
