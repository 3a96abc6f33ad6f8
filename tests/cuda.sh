#!/usr/bin/env bash
# The library's tests on CUDA alone, and the demo's systems on a tiny model, with whichever libcuda.so.1 FOLDER holds: the PTX machine unless said otherwise,
# another stand-in, or a real driver. MOLORA_REQUIRE makes its absence a failure. `--test NAME` takes the place of all.
#
#     tests/cuda.sh [FOLDER] [-- ARGUMENTS OF cargo test]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "${1-}" != --help ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0; }
folder=target/ptx-machine
if [ $# -gt 0 ] && [ "$1" != -- ]; then
    folder=$1
    shift
else
    cargo build -q --workspace --lib
    mkdir -p "$folder"
    for name in libcuda.so libcuda.so.1; do
        ln -sfn "$(realpath "${CARGO_TARGET_DIR:-target}")/debug/libptx_machine.so" "$folder/$name"
    done
fi
[ "${1-}" != -- ] || shift
LD_LIBRARY_PATH="$(realpath "$folder")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# One test at a time: a new context synchronises, which ends another thread's capture, on real drivers too.
export RUST_TEST_THREADS=1
export MOLORA_REQUIRE=cuda MOLORA_DEVICE=cuda LD_LIBRARY_PATH
# No WebGPU, whose tests have runs of their own.
export VK_DRIVER_FILES=/none VK_ICD_FILENAMES=/none __EGL_VENDOR_LIBRARY_FILENAMES=/none
names=()
case " $* " in
    *' --test'[\ =]*) ;;
    *) mapfile -t names < <({ basename -s .rs tests/*.rs && dirname tests/*/main.rs | xargs -n 1 basename; } |
        grep -vE '^(approximate|cache|engine|parts|trace|.*_wgpu)$')
        names+=(systems) ;;
esac
# The whole workspace, whose command switches CUDA on: what other runs have compiled is not compiled again.
exec cargo test --workspace --no-fail-fast "${names[@]/#/--test=}" "$@"
