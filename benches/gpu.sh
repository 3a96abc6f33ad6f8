#!/usr/bin/env bash
# Builds, tests, verifies and times everything on the NVIDIA GPU of this machine, and writes one dated file for the card:
# benches/record/DATE_CARD.json. Needs a driver (CUDA 12.0 or newer) and cargo; no CUDA toolkit. About ten minutes.
#
#     benches/gpu.sh [--quick] [FOLDER]
set -euo pipefail
quick=
if [ "${1-}" = --quick ]; then quick=--quick; shift; fi
[ "${1-}" != --help ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0; }
folder=$(mkdir -p "${1:-$(dirname "${BASH_SOURCE[0]}")/record}" && cd "${1:-$(dirname "${BASH_SOURCE[0]}")/record}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
echo "card: $card, driver $driver"
# The stand-in that counts instead of running would give a file without times.
case "${LD_LIBRARY_PATH-}" in
    *ptx-machine*)
        echo "LD_LIBRARY_PATH names the PTX machine: times need the card's own driver" >&2
        exit 1
        ;;
esac

export MOLORA_REQUIRE=cuda MOLORA_DEVICE=cuda
cargo test --release -p molora --no-default-features --features cuda --tests 2>&1 | tee "$work/tests"
cargo build --release --bin molora
molora=${CARGO_TARGET_DIR:-target}/release/molora
"$molora" verify --device cuda --long --json >"$work/verify.json"
"$molora" bench --device cuda ${quick:+"$quick"} --tokens 1,8,64,512,4096 --json | tee "$work/bench.jsonl"

name=$(date -u +%Y-%m-%d)_$(tr -cs 'A-Za-z0-9\n' '-' <<<"$card")
python3 - "$work" "$folder/$name.json" "$card" "$driver" "$(git rev-parse HEAD 2>/dev/null || true)" <<'PY'
import datetime, json, pathlib, re, sys
work, out, card, driver, commit = pathlib.Path(sys.argv[1]), *sys.argv[2:]
tests = [sum(map(int, found)) for found in zip(*re.findall(r"test result: \w+\. (\d+) passed; (\d+) failed", (work / "tests").read_text()))]
record = {
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "card": card, "driver": driver, "commit": commit,
    "tests": dict(zip(["passed", "failed"], tests)),
    "verify": json.loads((work / "verify.json").read_text()),
    "bench": [json.loads(line) for line in (work / "bench.jsonl").read_text().splitlines() if line.startswith("{")],
}
pathlib.Path(out).write_text(json.dumps(record, indent=1) + "\n")
print(out)
PY
