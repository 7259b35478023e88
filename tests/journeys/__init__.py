"""Whole daemons, started as people start them, in front of real backends."""
