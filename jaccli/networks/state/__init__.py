"""What a forward pass may change in a model and in its process, and how each is put back.

    state                                          put back by
    ─────────────────────────────────────────────  ────────────────────────────────────────────────────────────────
    buffers, tensors and arrays in attributes      snapshot: a pass sees copies; the originals are put back
    attributes, containers and objects in them     snapshot (attributes finds them): contents put back
    submodules, hooks                              snapshot: registrations put back, if the model has code of its own
    parameters                                     parameter_writes: a write is stopped, and the pass begins again with
                                                   a copy of that parameter (snapshot)
    requires_grad and grad of parameters           snapshot.without_parameter_gradients
    random generators, global or of the model      random_generators: states put back
    generators that a pass makes without a seed    unseeded_generators: seeded from one stream, whose position is put
                                                   back
    default dtype, threads, precision, determinism process_settings
    gradient checkpoints (would run again later)   checkpointing: replaced by what they compute, for one pass

``custom_code`` decides how much of this is needed: layers of torch alone change few of these. ``fingerprint`` is the
other half: it tells whether the user has changed a model since a program of it was recorded.

In: modules and generators. Out: context managers and snapshots; nothing of a model is changed after them.
Why: J takes many passes, each of which must see the same function.
"""
