"""Results → table, markdown, json, jsonl, csv, npy, npz, pt, safetensors, zarr; and saved Jacobians read back.

In:  records, or J in blocks ``(samples, n_out, n_in)``; a saved J.
Out: a file or standard output; a saved J as a tensor ``(batch, n_out, n_in)``.
Why: a file appears whole or not at all, a pipe gets each block as it is computed, and all formats are read back.

    records (dicts)       ─→ numbers ─→ table, values             ┐
    blocks (samples,      ─→ open_sink ─→ matrix: matrix_text,    ├─→ atomic ─→ a file, whole or not at all
            n_out, n_in)        matrix_binary, sparse             ┘    └─ standard ─→ standard output
    a saved J             ─→ read: read_text, sparse, zarr_screen ─→ (batch, n_out, n_in), and where it is from

choose says which format, and whether the output may be written, before any work is done. terminal, charset, wrap and
render say what people see: width, colours, characters, and J as a picture. Nothing here computes with J.
"""
