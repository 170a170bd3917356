"""Training of a network so that J of layer pairs comes near a goal (as the identity) and its outputs stay or fit.

    samples    batches, and noisy copies around them ┐
    goal       how far J is from its goal            ├─→ loss = task + weight * mean |J - goal|^2 / n
    task       fit targets, or keep the outputs      ┘      └─→ descent: a step of Adam
                                                                  └─→ loop: evaluate on held-out samples, keep the best

``loop.Training`` yields a ``TrainingStep`` for each step, so that its caller can stop it at any time. In: a network and
its samples. Out: the same network with the best parameters, and what was seen on the way. Why: a loss alone is no
training; this keeps what the network does, and stops with the best.
"""
