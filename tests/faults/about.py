"""The words around the table in docs/reliability.md."""

ABOUT = """\
# Reliability of `wd.sweep`

`make faults` runs this table and writes this page: {verdict}

{table}

"Resumed bit for bit" means that the same call in a new process ended with the numbers of a sweep that was never
disturbed, and that no finished file was written anew or put aside. A trial whose numbers are wrong counts as "ACCEPTED
WRONG", one that trained finished runs again as "LOST"; either fails the command. The rows run in processes that are
forked for each trial, on one folder each; `tests/faults/` has them, and `make test` runs a few of each.

## What a finished run is

A folder belongs to one sweep. Its `manifest.json` says which, and its SHA-256 is in every file of finished runs:

- the axes in order, each with its type and values, and the seeds in order;
- the traced program for each combination of static values: its equations, its literals, and every array that it closes
  over, also inside of `jit` and `scan`;
- the metrics, with shapes and types;
- the versions of JAX, jaxlib, NumPy, this library, and Python without its patch level;
- JAX's settings, but for those that change no number (logging, caches, checks, how many CPU devices, promotion, which
  acts while a function is traced), and XLA's flags of the environment;
- the kind of device and of machine. The model of a CPU isn't compared: another one may round sums otherwise.

A call that differs in one of them is refused with the line that differs. The number of devices and of processes may
differ. In a multi-host job every process compares its own with process 0's before the first run.

Functions that run on the host (`jax.pure_callback`, `jax.experimental.io_callback`, `jax.ffi.ffi_call`) aren't in the
traced program, so a later call couldn't see that their code has changed: with `directory=` they are refused.
`jax.debug.print` changes no number and is allowed.

## What happens to bad files

- **A file of finished runs** ends with the SHA-256 of all that comes before. One that is truncated, garbled, of another
  sweep, or a copy under another name is named in the log, renamed to `runs-….nc.bad`, and its runs are trained again.
- **A damaged manifest** is an error, and nothing is changed. If it is moved away, as the error says, the files that
  carry this sweep's identity are taken, and a new one is written.
- **Files with other names** are left alone; `.part` files of one's own are removed once the folder is known to be this
  sweep's.
- **A folder that can't be written** can be read if its sweep is finished.

## What memory does

The number of runs in parallel is fixed by the first finished launch, not by one that was killed. Where memory runs out
(`RESOURCE_EXHAUSTED`), the sweep goes on with half as many, with a line in the log; finished runs are kept. Without
`chunk=`, free memory is read again when a sweep is resumed, from the machine and from its control groups (versions 1
and 2, nested). Where runs aren't elementwise, the last bits of a run may depend on how many are trained in parallel, so
after such a change they are those of the new number.

## What marks a run as diverged

A scalar that isn't finite, a curve with an infinite entry, or a curve without a finite one. Its scalars are then NaN.
A curve may be padded with NaN, at its end or between measurements; return its last value as a scalar too if a NaN there
means divergence.
"""
