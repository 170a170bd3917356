"""The activations of a network by name, and the network between two of them as a function.

    'blocks.*:in[:, 0]'   names that a user wrote
       │  resolve         spelled for this network: globs expanded, unknown names answered with the nearest
       │  calls           '#*' replaced by each call of a layer
       ▼
    Address               address, from suffix, index and glob: path, call, port, element, dimension, index
       │  boundary        located in a run: which module call, which tensor of its value (nested), which numbers
       ▼                  of that tensor (sample_view)
    ActivationLocation
       │  record          one forward pass that keeps the activations (substituted: which are the same one)
       ▼
    RecordedActivation
       │  function        source and target put together
       ▼
    LayerFunction         f: h_source ↦ h_target, both (batch, *shape)

In: a ``Network``, ``Inputs`` and names. Out: recorded activations and ``LayerFunction``s, which are all that the
methods know of a model. ``sample_dimension``, ``entry_dimension`` and ``misread`` find out which dimension counts
the samples, by comparing values. Reading names (``address`` and what it imports) needs no torch. Why: names are a
user's, tensors are a run's; one becomes the other here alone.
"""
