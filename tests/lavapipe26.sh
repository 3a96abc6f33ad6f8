#!/usr/bin/env bash
# Mesa 26 beside the system's own Mesa, in target/drivers/mesa26: lavapipe with subgroups of 4, 8 or 16 and cooperative
# matrices, llvmpipe that compiles OpenGL's kernels fast, and the compilers of AMD, NVIDIA, Qualcomm and Apple with
# stand-ins for their GPUs. It is a tree of Debian's packages, extracted and not installed; its libraries need its own C
# library, so programs run through its own loader.
#
#   tests/lavapipe26.sh                    installs the tree; costs nothing where it is there
#   tests/lavapipe26.sh vulkan COMMAND     cargo with its programs on that lavapipe; MOLORA_SUBGROUP=4, 8 or 16
#   tests/lavapipe26.sh opengl COMMAND     likewise on that llvmpipe's OpenGL
#
# A machine without Debian's mirrors, or whose mirrors have no Mesa 26, fails here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD/target/drivers/mesa26
packages=libvulkan1,mesa-vulkan-drivers,mesa-drm-shim,libegl1,libegl-mesa0,libgl1-mesa-dri,libgles2
libraries=$root/usr/lib/x86_64-linux-gnu

say() { printf 'mesa26: %s\n' "$*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# The mirror is the machine's own: the first of its sources that says it is Debian's main archive.
# shellcheck disable=SC2016  # apt fills these in
mirror() {
    apt-get indextargets --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" && $2 == "Debian" && $3 == "main" { print $4; exit }'
}

install_tree() {
    [ "$(uname -m)" = x86_64 ] || { say "needs x86_64, found $(uname -m)"; return 1; }
    command -v apt-get >/dev/null || { say "needs Debian (apt-get)"; return 1; }
    command -v mmdebstrap >/dev/null || {
        say 'apt-get install mmdebstrap'
        as_root apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null ||
            { as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null; }
    }
    local from
    from=$(mirror)
    # Without lists apt does not know whose mirror it is.
    [ -n "$from" ] || { as_root apt-get update -qq && from=$(mirror); }
    [ -n "$from" ] || { say "found no mirror of Debian's main archive in apt's sources"; return 1; }
    say 'packages of trixie-backports (360 MB on disk)'
    rm -rf "$root" "$root.part"
    mkdir -p "${root%/*}"
    # A machine with an old clock or a frozen mirror must still be able to read the lists.
    mmdebstrap --variant=extract --mode="$([ "$(id -u)" = 0 ] && echo root || echo unshare)" --quiet \
        --architectures=amd64 --include="$packages" \
        --aptopt='APT::Default-Release "trixie-backports"' --aptopt='Acquire::Check-Valid-Until "false"' \
        trixie "$root.part" "deb $from trixie main" "deb $from trixie-backports main" >&2 ||
        { say 'mmdebstrap failed'; return 1; }
    # Nothing here needs documents, and apt's lists are most of what is left.
    rm -rf "$root.part"/usr/share/{doc,man,locale,info} "$root.part"/var
    mv "$root.part" "$root"
}

# The version is in the name of a library, which no package can fake by its own name.
version() { # prints Mesa's version
    local name=("$libraries"/libgallium-*.so)
    basename -s .so "${name[0]}" | sed 's/^libgallium-//'
}

[ -d "$root" ] || install_tree || exit 1
found=$(version)
[ "${found%%.*}" -ge 26 ] 2>/dev/null || { say "expected Mesa 26 or newer in $root, found '$found'"; exit 1; }
for library in libvulkan_lvp libvulkan_radeon libvulkan_nouveau libvulkan_freedreno libvulkan_asahi \
    libamdgpu_noop_drm_shim libnouveau_noop_drm_shim libfreedreno_noop_drm_shim libasahi_noop_drm_shim; do
    [ -s "$libraries/$library.so" ] || { say "$library.so is missing in $root"; exit 1; }
done
# Runs a program, of the machine's or built here, with the tree's C library and drivers. The checkout may have moved.
runner=$root/exec
printf '#!/bin/sh\nexec "%s" --library-path "%s" "$@"\n' \
    "$root/usr/lib64/ld-linux-x86-64.so.2" "$libraries:$libraries/dri" >"$runner.$$"
chmod +x "$runner.$$" && mv "$runner.$$" "$runner"
[ $# -gt 0 ] || { say "Mesa $found in target/drivers/mesa26"; exit 0; }

mode=$1
shift
install -d -m 700 target/drivers/run
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$runner
unset DISPLAY WAYLAND_DISPLAY
export LIBGL_ALWAYS_SOFTWARE=1 XDG_RUNTIME_DIR=$PWD/target/drivers/run
# Older Mesas cut the index of a cache that they share to their own size, under the feet of whoever has it mapped (SIGBUS).
export MESA_SHADER_CACHE_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/mesa26
install -d "$MESA_SHADER_CACHE_DIR"
case $mode in
    vulkan)
        # Vectors of 128, 256 and 512 bits are subgroups of 4, 8 and 16.
        export LP_NATIVE_VECTOR_WIDTH=$((32 * ${MOLORA_SUBGROUP:-8}))
        icd=$root/usr/share/vulkan/icd.d/lvp_icd.json
        export WGPU_BACKEND=vulkan __EGL_VENDOR_LIBRARY_FILENAMES=/none VK_DRIVER_FILES=$icd VK_ICD_FILENAMES=$icd
        export MOLORA_REQUIRE=cpu,lavapipe,"mesa $found"
        ;;
    opengl)
        export WGPU_BACKEND=gl VK_DRIVER_FILES=/none VK_ICD_FILENAMES=/none
        export __EGL_VENDOR_LIBRARY_DIRS=$root/usr/share/glvnd/egl_vendor.d
        export MOLORA_REQUIRE=cpu,opengl,"mesa $found"
        ;;
    *) say "expected vulkan or opengl, got $mode"; exit 2 ;;
esac
exec "$@"
