"""From what a caller gives to a decision how J is computed, and the decision in words.

    model, x, names ─→ bind ─→ Network, addresses, Inputs
                               ├─ early_refusal     J of one sample: can that of all fit the memory?
                               └─→ linearize ─→ Linearization       f at the samples, probed by a backward pass
                                                ├─→ decide ─→ Decision ─→ explain ─→ str(plan), --explain
                                                └─ batch_influence   does J change with the samples beside?

``decide`` asks ``methods`` to select one, and sizes the chunk of rows and the block of samples by ``memory``;
``mixing_message`` says what it means where samples mix. ``run.blocks`` calls both, ``linearize`` for each block and
``decide`` for the first.

In: a model, samples, layer names, a memory limit. Out: a ``Linearization``, a ``Decision``, and its text.
Why: what is going to happen, and what it costs, is known and can be refused before the passes of a method start.

``linearize`` lies below the methods, which need a ``Linearization``; everything else here lies above them.
"""
