"""TorchScript models (scripted, traced, frozen) run operator by operator, with every module call in sight.

    archive ─→ screen_archive ─→ torch's loader ─→ screen_graphs ─→ ScriptModule      (load)
               source_literals,   inside             operators          │
               source_nesting,    memory_limit                          │
               archive_pickles                                          ↓
                    state (modules, attributes), program (functions, compiled once)   (network)
                                                                        │
      compiler: graph ─→ instructions over a frame of slots ←─ control, emit_values, operators, natives
                inplace_writes: what the code may write to              ↓
      binding: arguments ─→ run: one forward pass (item_limits) over script_objects of script_types;
                            ``traced`` gives calls in a trace the structure that the module has

In: a file, or a ``ScriptModule``. Out: a ``ScriptNetwork``. Why: TorchScript's own executor gives wrong
derivatives in forward mode, knows no ``vmap`` and allows no hooks; here each operator is an ordinary PyTorch call. The
loader of PyTorch compiles source and may run code while it does: it sees an archive only after we have looked through.
"""
