"""Accord: an HTTP load balancer whose instances agree on their backends."""

__version__ = "0.1.0"
