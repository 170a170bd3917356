"""How torch and the process are used, where several folders need the same.

    dispatch      a mode that sees every operator, and one that keeps tensors from leaving torch
    kernels       settings of torch that choose kernels, changed for a block and restored
    printing      where the code of models may print: standard error
    timed         the seconds of a call, an accelerator's work included
    torch_errors  what an error of torch means: its reason, and whether memory ran out

In: a call, a block of code, or an error. Out: its result, its seconds, or words. Why: torch's settings, modes and
errors have traps, which are known in one place alone.
"""
