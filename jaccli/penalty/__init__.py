"""The distance of J from the identity as a loss: ``jaccli.identity_deviation``, differentiable in model and samples.

    model, x, layers ─→ identity        the squared distance of each sample, from J, its factors or products with it
                          └─ call_site  what a first call found out about a layer pair (``Analysis``), for later calls
                               ├─ verify         J as a recorded differentiable program; are its gradients right?
                               ├─ slope          … compared with differences of J along a random direction
                               └─ training_pass  otherwise a recorded forward pass, and rows of J by backward passes

In: a model in training, ``x`` ``(batch, …)``, two layer names, and what ``choices`` names: a goal and an estimator.
Out: ``(batch,)``, with a graph that leads to the parameters. Programs are verified at calls 1, 2, 4, 8, …
Why: the J of ``run`` has no graph; here autograd can differentiate J again, in every training step.
"""
