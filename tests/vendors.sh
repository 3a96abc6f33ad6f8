#!/usr/bin/env bash
# Compiles the WebGPU pipelines by the compilers of AMD, NVIDIA, Qualcomm and Apple's GPUs, as Mesa has them, and holds
# registers, spills, memory, occupancy and instructions to tests/vendors.tsv. Nothing runs, and no GPU is needed: stand-ins
# for the kernel's drivers pretend one. A driver that is missing is a failure.
#
#   tests/vendors.sh               the table's pipelines
#   tests/vendors.sh --write       makes the table anew
#   tests/vendors.sh --all         every variant of every shader: nothing may fail, and nothing may spill
#   tests/vendors.sh --self-test   shows that the gate can fail
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tests/lavapipe26.sh
# The whole workspace, as in every other step: with `-p`, cargo compiles the dependencies anew.
cargo build -q --workspace --bin molora-vendors
exec "${CARGO_TARGET_DIR:-target}/debug/molora-vendors" "$@"
