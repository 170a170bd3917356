"""Linear maps between activations, applied to blocks: what the derivatives of operators consist of.

    rules (an operator) ─→ chain of primitives ─→ .apply(block) ─→ block over the other activation

In: a block of vectors over one activation. Out: the same vectors multiplied by the map, or by its transpose ``.T``,
over the other activation; its structure is kept where the map allows it. ``base`` says what a primitive consists of.

Why: some twenty maps serve the several hundred operators of torch that the rules know.

    elementwise  factors, numbers, dtypes        matrix       matrices, softmax and normalisations
    reshape      views, broadcasts, sums         convolution  by windows or in full (toeplitz, polyphase, images)
    slice        slices and their transposes     gather       indices and their transposes
"""
