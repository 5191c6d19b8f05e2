"""How the examples print: plain lines."""

import jax
from absl import logging


def plain() -> None:
    """Log lines without absl's prefix of date and file; nothing about accelerators that this machine lacks."""
    jax.config.update("jax_logging_level", "WARNING")
    logging.get_absl_handler().setFormatter(None)
