"""MODEL, as a user gives it, as a ``Network``: something that runs with its layers in sight.

    MODEL ─→ identify ─→ what it is                       reader             ─→ as_network (adapt)
             (load)      ├─ SPEC, code that builds it     identify.import_spec  ─→ EagerNetwork
                         ├─ a file of weights             weights, with --arch  ─→ EagerNetwork
                         ├─ a TorchScript archive         torchscript           ─→ ScriptNetwork
                         └─ a torch.export archive        exported              ─→ ExportedNetwork

``load.load_model`` goes from a path or SPEC to a module, ``adapt.as_network`` from a module (loaded or the user's own)
to a ``Network``. A file is data from a stranger: its kind is told from its content and not from its name, and unless
the user trusts it no code in it runs. ``screening`` says what its operators may be and checks their arguments;
``interpretation`` holds what both graph readers do in the same way. Weights come from the file itself, but for a SPEC
(fresh ones) and for a file of weights, which goes into the module that ``arch`` makes.

In: a path, a SPEC or a module. Out: a ``Network``, or an error that says what MODEL is and what was expected.
Why: nothing after this asks which format a model came in.
"""
