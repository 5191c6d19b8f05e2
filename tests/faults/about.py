"""The text around the table in docs/reliability.md."""

ABOUT = """\
# Reliability of `wd.sweep` and `wd.search`

`make faults` runs this table and writes this page: {verdict}

{table}

"Resumed bit for bit" means that the same call in a new process ended with the numbers of a sweep that was never
disturbed, and that no finished file was rewritten or set aside. A trial with wrong numbers counts as "ACCEPTED WRONG",
and one that trained finished runs again as "LOST"; either fails the command. Each trial runs in forked processes on its
own folder. The trials are in `tests/faults/`. `make test` runs a few of each fault of a sweep, and
`tests/test_tpu_run.py`.

## The identity of a sweep

A folder belongs to one sweep. Its `manifest.json` says which, and the manifest's SHA-256 is in every file of finished
runs. The manifest holds

- the axes in order, each with its type and values, and the seeds in order;
- the traced program for each combination of static values: its equations, its literals, and every array that it closes
  over, including those inside `jit` and `scan`;
- the metrics, with shapes and types;
- the versions of JAX, jaxlib, NumPy, this library, and Python without its patch level;
- JAX's settings, except those that don't change numbers (logging, caches, checks, the number of CPU devices, promotion,
  which acts during tracing), and XLA's flags from the environment;
- the kind of device and of machine. CPU models aren't compared, although another one may round sums differently.

A call that differs in one of them is refused, and the error names what differs. The number of devices and of processes
may differ. In a multi-host job every process compares its manifest with that of process 0 before the first run.

Functions that run on the host (`jax.pure_callback`, `jax.experimental.io_callback`, `jax.ffi.ffi_call`) aren't in the
traced program, so a later call couldn't see that their code has changed. With `directory=` they are refused.
`jax.debug.print` doesn't change numbers and is allowed.

## Bad files

- **A file of finished runs** ends with the SHA-256 of its content. A file that is truncated, changed, of another sweep,
  or a copy under another name is logged and renamed to `runs-….nc.bad`, and its runs are trained again.
- **A damaged manifest** is an error, and nothing is changed. If it is moved away, as the error says, the files that
  carry this sweep's identity are taken, and a new manifest is written.
- **Files with other names** are left alone. Leftover `.part` files are removed once the folder is known to belong to
  this sweep.
- **A read-only folder** can be read if its sweep is finished.

## Memory

The first finished launch, not one that was killed, fixes the number of runs in parallel. If memory runs out
(`RESOURCE_EXHAUSTED`), the sweep goes on with half as many, which is logged, and finished runs are kept. Without
`chunk=`, free memory is read again when a sweep is resumed, from the machine and from its control groups (versions 1
and 2, nested). Unless runs are elementwise, their last bits may depend on the number of runs in parallel. Runs that are
trained after it was halved have the bits of the new number.

## Job arrays

`wd.sweep(..., part=(i, n))` keeps the share of job i in a folder of its own, with a lock, a manifest and files as
above. The call without `part` reads all of them, also beside jobs that still run, changes no file and trains nothing.
If runs are missing it raises an error that names the parts to repeat.

## Searches

A study of `wd.search` may be in any storage of Optuna: a journal file, SQLite, PostgreSQL. Optuna's own heartbeats
exist only in databases and only for `study.optimize`, so each worker writes a rising number into the study's
attributes, and the others compare it by their own clocks: machines needn't agree on the time. A worker whose number
stays the same for `patience` seconds is dead, and at once if it was a process of the same machine that has ended. Its
trials are trained by the others, under the same numbers and with the same hyperparameters; a result is told once, and
a study ends with exactly `trials` results. A worker that was only slow loses nothing but the work. The journal file
of a `directory=` is in Optuna's format, is locked with flock, which the kernel releases with the process, and half a
line left by a killed writer is removed. (Optuna's own file backend keeps the others waiting for 30 seconds, and stays
unreadable.)

A trial with a diverged run is told as ±∞, the worst value. In a toy with a cliff, samplers that are told "failed"
went on to diverge in 70 % (TPE) and 20 % (CMA-ES) of later trials, "pruned" in 25 % and 20 %, and ±∞ in 25 % and 10
%.

## Divergence

A run diverged if a scalar isn't finite, or if a curve has an infinite entry or no finite one. Its scalars are then NaN.
A curve may be padded with NaN, at its end or between measurements. Return its last value as a scalar too if a NaN there
means divergence.
"""
