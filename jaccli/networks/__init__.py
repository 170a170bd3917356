"""A model of any format as a ``Network``: it can be run, and its activations seen and replaced at module boundaries.

    nn.Module ─→ eager.EagerNetwork ─┐                  ┌─→ tap.enter(path, call, args, kwargs) ─→ arguments
    TorchScript (models.torchscript) ├─→ Network.run ───┤
    .pt2        (models.exported)   ─┘                  └─→ tap.leave(path, call, output) ─→ output

In: a module or a program read from a file. Out: a ``Network`` (``network``), whose runs report each module call to a
``Tap`` and leave the model as it was (``state``). ``dtypes``, ``tensor_kinds`` and ``quantized`` say which numbers can
be converted (``cast`` does it), and of which tensors there is no Jacobian. Why: methods see no format, and a user's
model is never changed.
"""
