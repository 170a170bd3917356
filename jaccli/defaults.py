"""Every tuning constant, with its reason."""

from __future__ import annotations

# Finite differences: columns of the pilot, and its steps around eps^(1/3) in powers of ten. Seven steps
# over three decades cost 14 evaluations a column and hold the optimum of smooth and of kinked networks.
PILOT_COLUMNS = 4
PILOT_EXPONENTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
# A column is taken again when its second difference stands this far out, with a step this much smaller.
MEND_RATIO = 6.0
MEND_SHRINK = 4.0
MEND_ROUNDS = 2

# Bytes that one batched pass may work on. Larger chunks save nothing once a pass fills the caches: rows
# of a batched backward pass cost the same from some MiB on, and far more once they leave the cache.
WORKING_SET = 32 * 2**20
# A backward pass holds about this many tensors of the widest activation's size for each row.
ROW_TENSORS = 4
# Share of the machine's free memory that may be used when --max-memory is not given.
MEMORY_SHARE = 0.6
# Below this predicted time, in seconds, trying methods out costs more than it can save.
TRIAL_FROM = 0.02
# Rows or columns of a trial.
TRIAL_ROWS = 8
# The first vectorised forward pass of a process imports for about a second.
FUNCTORCH_IMPORT = 1.0
# J is held against an independent product; larger differences, relative to the size of the terms, are
# reported. eps^0.5 leaves three to four digits for rounding in deep networks.
BELIEF_POWER = 0.5
# Samples of the first block, from which memory is predicted for the rest: this many, or this many bytes.
PILOT_SAMPLES = 64
PILOT_BYTES = 2**20
# Up to this size a full singular value decomposition is quick; beyond, only the largest value is sought.
DENSE_SVD = 400
# Rounds of a bench: enough for an interval, few enough to wait for. Bootstrap resamples of it.
BENCH_ROUNDS = 30
BENCH_SHORT = 0.5
BOOTSTRAPS = 2000
