"""How `wd_optax.audit` measures an optimizer: probes, a harness, measurements, verdicts, findings, a report."""
