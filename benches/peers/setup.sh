#!/usr/bin/env bash
# Makes the virtual environment of the contenders that are Python packages: PyTorch, PEFT, ggml. About 1 GB, and a C++ compiler for
# ggml, which is built for this processor. A part that fails is named and left out; `molora peers` then says that it is absent.
#
#   benches/peers/setup.sh VENV [torch] [peft] [ggml]        all three unless named
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# \?//p' "$0"; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$1
shift
[ $# -gt 0 ] || set -- torch peft ggml
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet install "$@"; }

# The wheel for x86-64 is a build for CUDA, whose libraries are several GB. Its CPU half needs them only by name: two small ones are
# installed, for stubs.py the rest.
torch() {
    pip numpy filelock typing-extensions sympy networkx jinja2 fsspec setuptools
    pip --no-deps torch==2.15.0
    if "$venv/bin/python" -c 'import torch; raise SystemExit(torch.version.cuda is None)' 2>/dev/null; then return; fi
    case "$(uname -m)" in
        x86_64)
            pip --no-deps 'nvidia-cuda-runtime==13.2.*' 'nvidia-cuda-cupti==13.2.*'
            "$venv/bin/python" "$here/stubs.py" ;;
    esac
    "$venv/bin/python" -c 'import torch; print("torch", torch.__version__)'
}
peft() {
    pip transformers safetensors psutil pyyaml tqdm packaging huggingface_hub
    pip --no-deps peft accelerate
    "$venv/bin/python" -c 'import peft; print("peft", peft.__version__)'
}
ggml() {
    pip numpy typing-extensions
    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_LLAMAFILE=ON" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
        pip --no-deps --no-binary ggml-python ggml-python==0.0.45
    "$venv/bin/python" -c 'import ggml; print("ggml", ggml.ggml_version().decode())'
}

absent=0
for part in "$@"; do
    case "$part" in torch | peft | ggml) ;; *) echo "$part: expected torch, peft or ggml" >&2; exit 2 ;; esac
    # Not as a condition, where `set -e` would not hold inside.
    set +e
    (set -e; "$part")
    status=$?
    set -e
    [ $status = 0 ] || { echo "$part: not installed" >&2; absent=1; }
done
exit $absent
