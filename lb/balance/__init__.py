"""Load-balancing policies, pure: who gets the next request."""
