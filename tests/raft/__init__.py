"""The consensus core, as its papers and other people's bugs describe it."""
