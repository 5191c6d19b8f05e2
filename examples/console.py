"""Console output of the examples."""

import jax
from absl import logging


def plain() -> None:
    """Removes absl's prefix from log lines, and JAX's messages about missing accelerators."""
    jax.config.update("jax_logging_level", "WARNING")
    logging.get_absl_handler().setFormatter(None)
