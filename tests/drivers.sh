#!/usr/bin/env bash
# Installs what the tests need beside Rust on Debian or Ubuntu: two software Vulkan drivers (lavapipe, SwiftShader),
# OpenGL on llvmpipe, Tint (Dawn's WGSL compiler, a program for node), and Python, whose wheels bring the CUDA
# compiler. Root or sudo. Every step skips itself when done, so it costs nothing to run this before each test. No GPU is
# needed or touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
drivers=target/drivers
tint=target/tint
webgpu=0.6.2 # npm's `webgpu`: Dawn's binary for linux-x64 and linux-arm64 is inside the package

say() { printf 'drivers: %s\n' "$*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
has() { command -v "$1" >/dev/null; }
missing() { # the packages of the arguments that are not installed
    local package
    for package; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}
updated=
apt_update() { [ -n "$updated" ] || as_root apt-get update -qq; updated=yes; }

has apt-get || { say "needs Debian or Ubuntu (apt-get)"; exit 1; }

# 1. lavapipe, llvmpipe and the loaders. A linker and node come along where there are none.
packages=(libvulkan1 mesa-vulkan-drivers libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 spirv-tools)
has cc || packages+=(gcc libc6-dev)
has node || packages+=(nodejs)
has npm || packages+=(npm)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
mapfile -t wanted < <(missing "${packages[@]}")
if [ ${#wanted[@]} -gt 0 ]; then
    say "apt-get install ${wanted[*]}"
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
fi
say "lavapipe and llvmpipe $(dpkg-query -W -f='${Version}' mesa-vulkan-drivers)"

# 2. SwiftShader: two files out of Debian's chromium-common, which is downloaded and not installed.
#    The sandbox user is named because apt's own (_apt) cannot write into a folder of ours, and warns.
swiftshader=$drivers/swiftshader
if [ ! -s "$swiftshader/vk_swiftshader_icd.json" ] || [ ! -s "$swiftshader/libvk_swiftshader.so" ]; then
    say "SwiftShader from chromium-common (32 MB, 5 MB kept)"
    rm -rf "$swiftshader" "$drivers/deb"
    mkdir -p "$swiftshader" "$drivers/deb"
    fetch() { (cd "$drivers/deb" && apt-get download -qq -o APT::Sandbox::User=root chromium-common); }
    # Lists that are absent or a release behind fail here: refresh them once.
    fetch 2>/dev/null || { apt_update && fetch; }
    dpkg-deb --fsys-tarfile "$drivers"/deb/chromium-common_*.deb |
        tar -x -C "$swiftshader" --strip-components=4 \
            ./usr/lib/chromium/libvk_swiftshader.so ./usr/lib/chromium/vk_swiftshader_icd.json
    rm -rf "$drivers/deb"
fi
say "SwiftShader in $swiftshader"

# 3. Tint. Its install script only helps macOS: no script of a package runs here.
[ "$(node -p 'parseInt(process.versions.node)')" -ge 18 ] || { say "node 18 or newer is needed: $(node --version)"; exit 1; }
if [ "$(node -p "require('./$tint/node_modules/webgpu/package.json').version" 2>/dev/null)" != "$webgpu" ]; then
    say "npm install webgpu@$webgpu (130 MB)"
    mkdir -p "$tint"
    npm install --prefix "$tint" --ignore-scripts --no-save --no-package-lock --no-audit --no-fund --loglevel=error "webgpu@$webgpu" >/dev/null
fi
say "Tint in webgpu $webgpu, node $(node --version)"

# 4. rustup's minimal profile has neither of these.
cargo fmt --version >/dev/null 2>&1 || { say "rustup component add rustfmt"; rustup component add rustfmt; }
cargo clippy --version >/dev/null 2>&1 || { say "rustup component add clippy"; rustup component add clippy; }
