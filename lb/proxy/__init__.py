"""The data path: what a worker does with bytes."""
