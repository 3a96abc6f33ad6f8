#!/usr/bin/env python3
"""PHATGOOSE's router, ours against PyTorch's layer_norm + matmul + softmax + topk, in one alternating run.

    pip install torch        (the CPU's wheels do)
    cargo bench -p molora --no-default-features --bench serve --no-run     prints the path of the program
    benches/peers/route.py PROGRAM [--pairs N] [--experts N] [--width N] [--tokens N ..]

Both run on all cores, f32; inputs and weights rotate through copies. Prints medians, and the median of the pairs' ratios with its
95 % interval. OMP_WAIT_POLICY is PASSIVE unless set.
"""
import argparse
import math
import os
import subprocess
import time


def median(values):
    values, n = sorted(values), len(values)
    half = 0.98 * math.sqrt(n)
    at = lambda i: values[min(max(int(i), 0), n - 1)]
    return at(n / 2), at(n / 2 - half), at(math.ceil(n / 2 + half))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--experts", type=int, default=166)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 512])
    args = parser.parse_args()

    # Threads that spin after their call would take a core from whoever is next.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_grad_enabled(False)
    ours = subprocess.Popen([args.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    norm = lambda u: torch.nn.functional.layer_norm(u, (args.width,), eps=1e-5)
    # The prototypes' own norm and the temperature are folded before the clock starts, as ours are.
    protos = [norm(torch.randn(args.experts, args.width)).T.contiguous() / math.sqrt(args.width) for _ in range(3)]

    def peer(x, v):
        start = time.perf_counter()
        weights, ids = torch.topk(torch.softmax(norm(x) @ v, dim=-1), 2, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return time.perf_counter() - start

    def own(tokens):
        ours.stdin.write(f"route {tokens} {args.experts} {args.width}\n")
        return float(ours.stdout.readline())

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.experts} experts, {args.width} wide")
    for tokens in args.tokens:
        xs = [torch.randn(tokens, args.width) for _ in range(3)]
        times = []
        for i in range(args.pairs + 5):
            first = own(tokens) if i % 2 else None
            theirs = peer(xs[i % 3], protos[i % 3])
            times.append((first if first is not None else own(tokens), theirs))
        times = times[5:]
        ratio = median([b / a for a, b in times])
        print(
            f"{tokens:4} tokens: ours {median([a for a, _ in times])[0] * 1e6:8.1f} us, "
            f"torch {median([b for _, b in times])[0] * 1e6:8.1f} us, "
            f"torch / ours {ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"
        )


main()
