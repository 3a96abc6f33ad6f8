#!/usr/bin/env bash
# The one test command, here and in CI. `tests/run.sh` stays under 30 minutes on two cores; `--long` adds the long
# tables of cases, the whole suite on SwiftShader, OpenGL and lavapipe 26, all planted faults, CUDA's kernels for older cards, in more orders of
# execution and by a second compiler, the CPU's NEON kernels, clippy of every feature combination, and the demo. No GPU is
# needed.
#
# Every step runs even after a failure; a table of results and seconds closes the run; any failure fails the run.
# MOLORA_REQUIRE names the devices that a run must find: a wrong driver path is then a failure and not a quiet pass.
# shellcheck disable=SC2317  # the functions below are called through `step`
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
long=
case "${1-}" in
    '') ;;
    --long) long=yes ;;
    *) echo "usage: tests/run.sh [--long]" >&2; exit 2 ;;
esac

names=() results=() seconds=() failed=0
step() { # step NAME COMMAND...
    local name=$1 begin=$SECONDS result=ok
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    "$@" </dev/null || { result=FAILED; failed=1; printf '=== %s: FAILED\n' "$name"; }
    names+=("$name") results+=("$result") seconds+=($((SECONDS - begin)))
}
# A step at the side of others: `beside NAME COMMAND...`, then the others, then `join`, which shows it.
beside() {
    local begin=$SECONDS
    side=$1
    shift
    printf '\n=== %s: begins beside what follows\n' "$side"
    { "$@" </dev/null >target/beside.log 2>&1; echo "$? $((SECONDS - begin))" >target/beside.result; } &
}
join() {
    local status took
    wait
    read -r status took <target/beside.result
    step "$side" shown "$status"
    seconds[-1]=$took
}
shown() { cat target/beside.log; return "$1"; }
table() {
    printf '\n%-34s %-7s %7s\n' step result seconds
    local i
    for i in "${!names[@]}"; do printf '%-34s %-7s %7d\n' "${names[i]}" "${results[i]}" "${seconds[i]}"; done
    printf '%-34s %-7s %7d\n' all "$([ $failed = 0 ] && echo ok || echo FAILED)" "$SECONDS"
}

# One Vulkan driver for one command: both spellings, as old and new loaders read different ones.
# A display server or a real GPU must not get in between.
software() { env -u DISPLAY -u WAYLAND_DISPLAY LIBGL_ALWAYS_SOFTWARE=1 XDG_RUNTIME_DIR="$PWD/target/drivers/run" "$@"; }
# No OpenGL beside it either: that would be a second adapter, under the same name on llvmpipe.
vulkan() { # vulkan MANIFEST COMMAND...
    local icd
    icd=$(realpath -e "$1") || return 1
    shift
    software WGPU_BACKEND=vulkan __EGL_VENDOR_LIBRARY_FILENAMES=/none \
        VK_DRIVER_FILES="$icd" VK_ICD_FILENAMES="$icd" "$@"
}
# shellcheck disable=SC2206  # the name of Mesa's manifest carries the architecture: a glob finds it
lavapipe_icd=(/usr/share/vulkan/icd.d/lvp_icd*.json)
lavapipe() { vulkan "${lavapipe_icd[0]}" MOLORA_REQUIRE=cpu,lavapipe "$@"; }
swiftshader() { vulkan target/drivers/swiftshader/vk_swiftshader_icd.json MOLORA_REQUIRE=cpu,swiftshader "$@"; }
# No Vulkan driver at all: whatever runs, runs on OpenGL (EGL surfaceless on llvmpipe).
opengl() { software WGPU_BACKEND=gl VK_DRIVER_FILES=/none VK_ICD_FILENAMES=/none MOLORA_REQUIRE=cpu,opengl "$@"; }

combination() { cargo clippy -p molora "$@" -- -D warnings; }
document() { RUSTDOCFLAGS="-D warnings" cargo doc -p molora -p molora-check --no-deps; }
# Always the whole workspace: with `-p`, cargo settles on other features of the dependencies and compiles them anew.
suite=(cargo test --workspace --tests --no-fail-fast)
dump_shaders() {
    rm -rf target/tint/wgsl && cargo build -q --workspace --example dump_shaders --example golden &&
        "${CARGO_TARGET_DIR:-target}/debug/examples/dump_shaders" target/tint/wgsl
}
# The golden subset comes from lavapipe (its answers judged first) and is repeated by Dawn on SwiftShader.
golden() { rm -rf target/dawn && lavapipe "${CARGO_TARGET_DIR:-target}/debug/examples/golden" target/dawn; }
dawn() { swiftshader node tests/dawn/run.mjs target/dawn "$@"; }
second_front_end() {
    command -v clang++-19 >/dev/null || { sudo=; [ "$(id -u)" = 0 ] || sudo=sudo; $sudo apt-get install -y -qq clang-19 >/dev/null; }
    kernels/compile --clang
}
demo() {
    lavapipe cargo run -q --release --bin molora -- demo --json >target/demo.json &&
        cat target/demo.json && node -e 'JSON.parse(require("fs").readFileSync("target/demo.json", "utf8"))'
}

step drivers tests/drivers.sh
[ $failed = 0 ] || { table; exit 1; } # nothing below means anything without the drivers
install -d -m 700 target/drivers/run

step fmt cargo fmt --all --check
step clippy cargo clippy --workspace --all-targets -- -D warnings
# The library alone: a member of the workspace may switch features on for all.
step 'build without features' combination --no-default-features
step documentation document
# Every seed is another order of blocks and warps. One test at a time: there is a core left for lavapipe.
beside 'tests on CUDA, seed 1' env PTX_MACHINE_SEED=1 tests/cuda.sh
step 'tests on lavapipe' lavapipe "${suite[@]}"
join
# What is quick there; the long run has the whole suite on it, and Dawn below has cases of every operation.
kernels=(plan shrink expand base grouped_wgpu route_wgpu layer status)
step 'kernels on SwiftShader' swiftshader cargo test --workspace --no-fail-fast "${kernels[@]/#/--test=}"
# The wider Mesa: vectors of 512 bits are subgroups of 16, which the system's lavapipe never has.
mesa26() { # mesa26 MODE SUBGROUP COMMAND...
    local mode=$1 subgroup=$2
    shift 2
    MOLORA_SUBGROUP=$subgroup tests/lavapipe26.sh "$mode" "$@"
}
step 'Mesa 26' tests/lavapipe26.sh
step "vendors' gate can fail" tests/vendors.sh --self-test
step "vendors' compilers" tests/vendors.sh
step 'doc tests' lavapipe cargo test --workspace --doc
step 'PTX as committed, in budget' kernels/compile --check
# The set for older cards, whole in the long run.
step 'kernels on CUDA, sm_75, seed 2' env PTX_MACHINE_SM=75 PTX_MACHINE_SEED=2 tests/cuda.sh -- \
    --test shrink --test expand --test base --test layer --test cuda_few
step 'planted faults' tests/faults.py --some
step 'Tint can fail' node tests/tint/check.mjs --self-test
step 'dump the shaders' dump_shaders
step 'Tint' node tests/tint/check.mjs target/tint/wgsl
step 'golden dispatches' golden # built with the examples above
step 'Dawn can fail' dawn --self-test
step 'Dawn on SwiftShader' dawn

if [ -n "$long" ]; then
    # Ignored tests stay ignored: they are absent hardware and known issues, and fail by definition.
    step 'long tests on lavapipe' lavapipe MOLORA_LONG=1 "${suite[@]}"
    step 'long tests on SwiftShader' swiftshader MOLORA_LONG=1 "${suite[@]}"
    # Programs that start programs of their own are left out: a child would not run through the tree's loader.
    mapfile -t names_of_tests < <({ basename -s .rs tests/*.rs && dirname tests/*/main.rs | xargs -n 1 basename; } |
        grep -vE '^(cuda|approximate$)')
    whole=(cargo test --workspace --no-fail-fast "${names_of_tests[@]/#/--test=}")
    for subgroup in 4 8 16; do step "tests on lavapipe 26, $subgroup" mesa26 vulkan $subgroup "${whole[@]}"; done
    step 'tests on OpenGL' mesa26 opengl 8 "${whole[@]}"
    step 'planted faults, all' tests/faults.py
    step "vendors' compilers, all variants" tests/vendors.sh --all
    step 'tests on AArch64' tests/arm.sh
    step 'clippy without features' combination --all-targets --no-default-features
    step 'clippy with usearch' combination --all-targets --no-default-features --features usearch
    step 'tests of the approximate index' cargo test -p molora --no-default-features --features usearch --test approximate
    step 'clippy with cuda' combination --all-targets --features cuda
    step 'clippy with cuda alone' combination --all-targets --no-default-features --features cuda
    step demo demo
    step 'clang for the second front end' second_front_end
    step "tests on clang's PTX" env PTX_MACHINE_PTX="$PWD/target/cuda/clang/molora_sm_80.ptx" \
        tests/cuda.sh -- -- --skip each_architecture_has_its_kernels
    step "coverage of CUDA's kernels" tests/coverage.py
    step 'tests on CUDA, sm_75, seed 2' env PTX_MACHINE_SM=75 PTX_MACHINE_SEED=2 tests/cuda.sh
    for seed in 2 3; do step "tests on CUDA, seed $seed" env PTX_MACHINE_SEED=$seed tests/cuda.sh; done
    step "long tests on CUDA" env MOLORA_LONG=1 tests/cuda.sh
fi
table
exit $failed
