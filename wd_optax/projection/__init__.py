"""Weights on a sphere or in another set, in place of a decay toward zero."""
