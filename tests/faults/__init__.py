"""Faults that a sweep has to survive, tried many times each: `python -m tests.faults --docs docs/reliability.md`."""
