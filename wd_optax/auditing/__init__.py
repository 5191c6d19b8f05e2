"""How `wd_optax.audit` measures an optimizer: probes, a test stand, facts, verdicts, findings, a report."""
