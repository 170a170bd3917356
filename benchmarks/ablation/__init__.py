"""What each part of the engine brings, by leaving it out: `python benchmarks/ablate.py`, which says how it is measured.

switch            a part that can be left out, by functions put in the place of its own
program_switches, search_switches, map_switches, plan_switches    the parts
switches          all of them by name
sparse_networks   networks for parts that no network of the benchmark needs
fingerprints      whether a call does the same with a part and without it
timing            two calls in turns, in one process
subject           a network, and all figures of a switch on it
results           the file of results, written as it goes
table             the table of docs/engine.md
"""
