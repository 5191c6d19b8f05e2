"""How `wd_optax.sweep` trains a grid: axes, one traced program per static value, blocks of runs, a store, a result."""
