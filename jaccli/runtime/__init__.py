"""How torch and the process are used, where several folders need the same.

dispatch      a mode that sees every operator, and one that keeps tensors from leaving torch
kernels       settings of torch that choose kernels, changed for a block and restored
printing      where the code of models may print: standard error
torch_errors  what an error of torch means: its reason, and whether memory ran out
"""
