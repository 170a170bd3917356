"""Results → table, markdown, json, jsonl, csv, npy, npz, pt, safetensors, zarr; and saved Jacobians read back.

    records (dicts)       ─→ numbers ─→ table, values             ┐
    blocks (samples,      ─→ open_sink ─→ matrix: matrix_text,    ├─→ atomic ─→ a file, whole or not at all
            n_out, n_in)        matrix_binary, sparse             ┘    └─ standard ─→ standard output
    a saved J             ─→ read: read_text, sparse, zarr_screen ─→ (batch, n_out, n_in), and where it is from

choose says which format, and whether the output may be written, before any work is done. terminal, charset, wrap and
render say what people see: width, colours, characters, and J as a picture. Nothing here computes with J.
"""
