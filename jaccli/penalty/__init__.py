"""The distance of J from the identity as a loss: ``jaccli.identity_deviation``, differentiable in model and samples.

    model, x, layers ─→ identity        the squared distance of each sample, from J, its factors or products with it
                          └─ call_site  what a first call found out about a layer pair (``Analysis``), for later calls
                               ├─ verify         J as a recorded differentiable program; are its gradients right?
                               ├─ slope          … compared with differences of J along a random direction
                               └─ training_pass  otherwise a recorded forward pass, and rows of J by backward passes

In: a model in training, ``x`` ``(batch, …)``, two layer names. Out: ``(batch,)``, with a graph that leads to the
parameters. It is apart from ``run``, whose J has no graph: here autograd can differentiate J again,
in every training step, by a program where the engine has one. Programs are verified at calls 1, 2, 4, 8, …
"""
