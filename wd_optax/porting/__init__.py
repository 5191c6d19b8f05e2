"""Whose numbers: optimizers of other frameworks, called by their own names and arguments."""
