"""The registry: what is written through the API, what a file changes, the same everywhere."""
