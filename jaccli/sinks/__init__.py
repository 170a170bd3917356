"""Records and matrices → table, json, jsonl, csv, npy, npz, pt, safetensors, zarr; and back again.

choose      which format, and may the output be written
atomic      a file appears whole or not at all
standard    standard output for results alone
charset     text for people in the characters that a stream has
numbers     records in the text formats
matrix      Jacobians, block by block, in every format
render      a matrix on a terminal
read        saved Jacobians
"""
