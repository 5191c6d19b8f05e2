"""Which weight decay: timescales, equilibria, published runs, sweeps."""
