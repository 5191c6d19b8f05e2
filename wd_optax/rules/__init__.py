"""Toward what, and when: rules are Optax transformations from the parameters to the direction of decay."""

__all__: list[str] = []
