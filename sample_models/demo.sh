#!/bin/sh
# The main job on sample models. Needs `jaccli` on the path; `make demo` sees to that.
set -eu
cd "$(dirname "$0")"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run jaccli compute linear.pt -i linear_x.npy --format table
run jaccli layers near_identity.pt -i near_identity_x.npy --format table
run jaccli deviation near_identity.pt -i near_identity_x.npy --layer fc1 --format table
run jaccli deviation untrained.pt -i near_identity_x.npy --layer fc1 --samples 0:2 --format table
run jaccli compute decoder.safetensors --arch nets.py:Decoder -i decoder_z.npy --samples 0 --format table
printf '\nDone. Next: jaccli --help, and README.md.\n'
