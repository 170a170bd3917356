"""TorchScript models (scripted, traced, frozen) run operator by operator, with every module call in sight.

    archive ─→ screen_archive ─→ torch's loader ─→ screen_graphs ─→ ScriptModule      (load)
               source, pickles    inside             operators          │
                                  memory_limit                          ↓
                    state (modules, attributes), program (functions, compiled once)   (network)
                                                                        │
      compiler: graph ─→ instructions over a frame of slots ←─ control, operators, natives
                                                                        ↓
                    run: one forward pass; ``traced`` gives calls in a trace the structure that the module has

In: a file, or a ``ScriptModule``. Out: a ``ScriptNetwork``. It exists because TorchScript's own executor gives wrong
derivatives in forward mode, knows no ``vmap`` and allows no hooks; here each operator is an ordinary PyTorch call. The
loader of PyTorch compiles source and may run code while it does: it sees an archive only after we have looked through.
"""
