"""The control plane: what the controller does."""
