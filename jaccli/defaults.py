"""Constants that tune how J is taken, each with its reason: methods, their choice, memory, programs and races.

Constants that tune one algorithm (rounding, elimination, programs' kernels, estimates) stand beside it.
"""

from __future__ import annotations

# Finite differences. Columns of the pilot, and steps a decade: from eps^(1/3)/100, where rounding dominates, to
# the scale of the coordinate itself, which suits linear and piecewise linear networks.
PILOT_COLUMNS = 4
PILOT_OUTPUTS = 1024  # of each sample
TRY_ALL = 16  # with at most TRY_ALL columns, the best of all steps is used for each
STEPS_A_DECADE = 5  # where the best of all is used
PILOT_STEPS_A_DECADE = 3
# A change between two steps is truncation, not noise, when it is this many times the noise expected.
STANDS_OUT = 2.5
STANDS_FAR_OUT = 4.0
# Rounding does not do this: after one change this large no second one is required.
STANDS_BEYOND_DOUBT = 12.0
# A step that is this many times smaller than the scale allows may grow, by this factor a round.
GROW = 3.0
# A column is computed again when its second difference is this many times the usual, with a step this much smaller.
MEND_RATIO = 6.0
MEND_SHRINK = 4.0
MEND_ROUNDS = 10
MEND_SHARE = 0.25  # of the columns, at most

# Bytes that one batched pass may work on. Larger chunks save nothing once a pass fills the caches: rows
# of a batched backward pass cost the same from some MiB on, and far more once they leave the cache.
WORKING_SET = 32 * 2**20
# A backward pass holds about this many tensors of the widest activation's size for each row.
ROW_TENSORS = 4
# Share of the memory left for passes that they are planned to fill: allocators round up and kernels scratch.
MEMORY_FILL = 0.75
# Share of the machine's free memory that may be used when --max-memory is not given.
MEMORY_SHARE = 0.6
# A loop over rows that is predicted to take less, in seconds, is run at once: a better choice would save little.
SOON = 0.02
# Predicted seconds: of a backward pass, of each of its operators, of an operator with a batch of rows, and with a batch
# of columns (functorch). The last is a factor: a batch moves more through memory, which makes its work slower.
PASS_S = 2e-5
NODE_S = 4e-6
BATCHED_NODE_S = 2e-5
FORWARD_NODE_S = 1.2e-4
BATCHED_WORK = 2.0
# Bytes a second that a backward pass reads and writes, the computation with them included.
TOUCHED_BYTES_S = 1e10
# Floating-point operations a second of a recurrent layer, step by step.
RECURRENT_FLOPS = 1e9
# Forward mode is no candidate with this many columns for each row: its pass takes longer than a backward pass.
FORWARD_COLUMNS = 2
# How many times faster than a common CPU an accelerator works.
ACCELERATOR_SPEED = 50.0
# Seconds that capture, search and a first run take for each operator, about. A single call whose loop over rows takes
# less does not search the structure.
ENGINE_OPERATOR_S = 1.5e-3
# ``structured`` is selected at once when it is predicted to take less than this share of the loop over rows.
CLEARLY = 0.25
# Runs of a recorded program with each number of threads, which show the fastest number.
PROGRAM_TRIES = 3
# A program that keeps more than GROUPED_FROM bytes, about a cache, is also timed in groups of samples: more and more of
# them, until that takes GROUPED_SLOWER times as long.
GROUPED_FROM = 2**20
GROUPED_SLOWER = 1.2
# Programs that a plan keeps, one for each signature of its inputs; analyses that a call of identity_deviation keeps.
PROGRAMS_KEPT = 8
# Elements of a planned call's J that are checked for NaN, evenly over it: each is a cache line from memory.
NAN_CHECK_ELEMENTS = 2**13
# Rows or columns of a trial in a bench, and of a method that stands in for another.
TRIAL_ROWS = 8
# The first backward pass of a process with a batch of cotangents imports sympy, which takes this many seconds.
SYMPY_IMPORT = 0.4
# The first vectorised forward pass of a process imports functorch, which takes about this many seconds.
FUNCTORCH_IMPORT = 1.0
# Samples of the first block, from which memory is predicted for the rest: this many, or this many bytes.
PILOT_SAMPLES = 64
PILOT_BYTES = 2**20
# Up to this size a full singular value decomposition is quick; beyond, only the largest value is sought.
DENSE_SVD = 400
# Rounds of a bench: enough for an interval, few enough to wait for.
BENCH_ROUNDS = 30
# Resamples of these rounds, for the interval of a ratio (bootstrap).
BOOTSTRAPS = 2000
# A bench repeats a first call that takes less than this, in seconds: it may have imported (functorch: some seconds).
BENCH_SHORT = 5.0
# An estimated relative error above this is a warning, not a note.
DOUBTFUL_ERROR = 0.01
