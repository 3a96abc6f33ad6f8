#!/usr/bin/env bash
# The CPU's tests on AArch64: the library's own, and those of every operation and the layer, cross-compiled and executed by
# qemu's user mode. It executes NEON exactly and says nothing about time. Installs what it needs (rustup's target, a
# cross-linker, qemu; root or sudo); whatever is missing after that is a failure.
#
#     tests/arm.sh [ARGUMENTS OF cargo test]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "${1-}" != --help ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0; }
target=aarch64-unknown-linux-gnu
root=/usr/aarch64-linux-gnu # where Debian's packages lay the libraries of that machine

say() { printf 'arm: %s\n' "$*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
has() { command -v "$1" >/dev/null; }

if ! has qemu-aarch64 || ! has aarch64-linux-gnu-gcc || [ ! -e "$root/lib/libc.so" ]; then
    packages=(qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
    say "apt-get install ${packages[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
if ! compgen -G "$(rustc --print target-libdir --target "$target")/libstd-*.rlib" >/dev/null; then
    say "rustup target add $target"
    rustup target add "$target"
fi
say "$(qemu-aarch64 --version | head -n 1)"

# The subject's name carries the instruction set: without NEON, nothing here runs.
export MOLORA_REQUIRE=NEON MOLORA_DEVICE=cpu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
suite=(cargo test -p molora --no-default-features --target "$target" --no-fail-fast)
on() { # on PROCESSOR COMMAND...
    say "on qemu's $1"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $1 -L $root" "${@:2}"
}
# The oldest AArch64, whose NEON is all that the kernels may use, and one that has every extension.
rooms=(route attend plan shrink expand base fused grouped layer)
on cortex-a53 "${suite[@]}" --lib "${rooms[@]/#/--test=}" "$@"
on max "${suite[@]}" --lib device::cpu
