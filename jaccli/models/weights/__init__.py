"""Files that hold weights and no network, and the network that they are loaded into.

    checkpoint ───→ contents ───────────→ candidates ─────────→ choice ───────→ architecture ─→ load_state_dict
    bytes to an     CheckpointContents:   every state dict and  the one that    code, or a      values copied in, names
    object          the object, its       module in the         is meant, with  linear_chain,   matched by state_dict
                    stand-ins             object, by key        notes           to load into

In: a safetensors file or one of ``torch.save``, optionally a key in it (``FILE[KEY]``), and an ``Architecture``: a
callable, a module, or the activation of a plain chain of linear layers. Out: an ``nn.Module`` with the weights, and
notes on what was chosen, renamed or skipped. ``rewrite`` goes the other way: the same file with the values of a trained
model. ``quick_look`` tells before torch is imported whether a file holds weights alone.
Why: most files are weights alone, under keys that vary. No code in one is executed unless the user trusts it.
"""
