"""The configuration file: its shape, its errors with positions, its differences."""
