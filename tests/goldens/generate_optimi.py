"""Writes optimi.npz. Needs torch-optimi and torch==2.13.0."""

import warnings

from cases_optimi import OPTIMI
from problem import save
from torch_runs import run_all

if __name__ == "__main__":
    import optimi

    warnings.filterwarnings("ignore", message="You are using weight_decay up to")  # ours is large on purpose
    save("optimi", ["torch-optimi", "torch"], run_all(OPTIMI, lambda call: getattr(optimi, call.partition(".")[2])))
