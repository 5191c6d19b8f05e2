"""How `wd_optax.search` trains what Optuna asks for: the space, batches of trials, workers on one study, a result."""
