#!/usr/bin/env python3
"""Plants faults in the CUDA kernels, and fails where the PTX machine does not report one of them.

    tests/faults.py             all faults, two at a time
    tests/faults.py --some      one of every report
    tests/faults.py NAME..      these
    tests/faults.py --list      what there is, without running it

Each fault is one edit of kernels/, compiled alone into target/faults/NAME and put into the committed text. A case that
is right without the fault runs on it, or a test that passes: standard error must name the fault and the kernel, or, where
only numbers change, the judge must call them wrong. Needs the compiler of kernels/compile and no GPU.
"""

import argparse
import collections
import concurrent.futures
import functools
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "faults"
PTX = ROOT / "kernels" / "ptx" / "molora_sm_80.ptx"
BUILT = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug"
RACE, GLOBAL, COPY = "race in shared memory", "race in global memory", "asynchronous copy not waited for"
BOUNDS, MISALIGNED, UNWRITTEN = "out of bounds", "misaligned", "uninitialised read"
INACTIVE, DIVERGENT, DEADLOCK, LONG = "inactive lane", "divergent barrier", "deadlock", "too long"
WRONG, BANKS = "wrong", "bank conflicts"
# What would look for an adapter finds no driver, and says nothing.
NO_WEBGPU = dict.fromkeys(["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES"], "/none")
# A read that should wait for a write: unwritten where it comes first, a race where it comes second.
EARLY = f"{RACE} or {UNWRITTEN}"

# edits: (file of kernels/, text, text instead); each text stands there once. report: a fault of the machine, or how else
# it shows. kernel: who must be named; its stem is the room. case: one or more, one after another; or `test FILE NAME`, for
# what no case runs.
Fault = collections.namedtuple("Fault", "name report kernel case edits")

FAULTS = [
    Fault("ring_wait_missing", COPY, "base_mma_f16", "base/f16/t33_i160_o64",
          [("base_mma.cuh", "        wait_groups<STAGES - 2>();\n", "")]),
    Fault("ring_wait_off_by_one", COPY, "base_mma_bf16", "base/bf16/t33_i160_o64",
          [("base_mma.cuh", "wait_groups<STAGES - 2>()", "wait_groups<STAGES - 1>()")]),
    Fault("last_wait_missing", COPY, "base_mma_f16", "base/f16/t33_i160_o64",
          [("base_mma.cuh", "    wait_groups<0>();\n", "")]),
    Fault("h_wait_off_by_one", RACE, "expand_mma_f16", "expand/f16/t33_k2_e8_r64_o64_uniform",
          [("expand_mma.cuh", "wait_groups<STAGES - 2>()", "wait_groups<STAGES - 1>()")]),
    Fault("step_wait_missing", COPY, "fused_sparse_mma_bf16", "fused/bf16/t33_k2_e8_r16_i64_o64_uniform_sparse",
          [("fused_mma.cuh", "        wait_groups<STAGES - 2>();\n        __syncthreads();\n        u32 thread",
            "        __syncthreads();\n        u32 thread")]),
    Fault("step_barrier_missing", EARLY, "fused_sparse_mma_f16", "fused/f16/t33_k2_e8_r16_i64_o64_uniform_sparse",
          [("fused_mma.cuh", "        wait_groups<STAGES - 2>();\n        __syncthreads();\n        u32 thread",
            "        wait_groups<STAGES - 2>();\n        u32 thread")]),
    Fault("gates_barrier_missing", EARLY, "fused_gate_mma_f16", "fused/f16/t33_k2_e8_r16_i64_o64_uniform_dense",
          [("fused_gate.cuh", "    __syncthreads();\n    products.finish(p, s);\n", "    products.finish(p, s);\n")]),
    Fault("gates_of_nobody_unwritten", UNWRITTEN, "fused_gate_mma_bf16", "fused/bf16/t33_k2_e8_r16_i64_o64_uniform_dense",
          [("fused_gate.cuh", "s.gates[i] = NOBODYS;", "if (i > THREADS) s.gates[i] = NOBODYS;")]),
    Fault("ring_barrier_missing", EARLY, "base_mma_f16", "base/f16/t33_i160_o64",
          [("base_mma.cuh", "        wait_groups<STAGES - 2>();\n        __syncthreads();\n",
            "        wait_groups<STAGES - 2>();\n")]),
    Fault("tile_barrier_missing", RACE, "shrink_many_f32_f32", "shrink/f32/t33_k2_e8_r16_i160_uniform",
          [("tile.cuh", "        at ^= 1;\n        __syncthreads();\n", "        at ^= 1;\n")]),
    Fault("round_barrier_missing", EARLY, "route_few_f32", "route/f32/t5_k4_e64_i64_uniform_softmax_selected",
          [("route.cu", "round[threadIdx.x / 32] = largest;\n        __syncthreads();\n",
            "round[threadIdx.x / 32] = largest;\n")]),
    Fault("second_pass_barrier_missing", RACE, "shrink_mma_f16", "shrink/f16/t35_k2_e8_r32_i64_one_expert",
          [("shrink_mma.cuh", "        finish(p, s, first, 4);\n        __syncthreads();\n",
            "        finish(p, s, first, 4);\n")]),
    Fault("ring_one_stage_short", COPY, "expand_mma_bf16", "expand/bf16/t33_k2_e8_r64_o64_uniform",
          [("expand_mma.cuh", "(stage + STAGES - 1) % STAGES", "(stage + STAGES - 1) % (STAGES - 1)"),
           ("expand_mma.cuh", "stage = (stage + 1) % STAGES", "stage = (stage + 1) % (STAGES - 1)")]),
    Fault("fragment_map_of_a", WRONG, "expand_mma_f16", "expand/f16/t33_k2_e8_r16_o64_uniform",
          [("expand_mma.cuh", "i % 2 == 0 ? 0x5410 : 0x7632", "i % 2 == 0 ? 0x7632 : 0x5410")]),
    Fault("fragment_map_of_b", WRONG, "base_mma_bf16", "base/bf16/t33_i64_o64",
          [("base_mma.cuh", "lane % 8 + lane / 16 * 8, part = 2 * half + lane / 8 % 2",
            "lane % 8 + lane / 8 % 2 * 8, part = 2 * half + lane / 16")]),
    Fault("fragment_map_of_d", WRONG, "shrink_mma_bf16", "shrink/bf16/t33_k2_e8_r16_i64_uniform",
          [("shrink_mma.cuh", "u32 r = r0 + 8 * (i / 2), n = n0 + i % 2;", "u32 r = r0 + 8 * (i % 2), n = n0 + i / 2;")]),
    Fault("reads_rows_behind_the_last", BOUNDS, "base_few_f32", "base/f32/t5_i256_o16",
          [("rows.cuh", "row(min(m + j, rows - 1))", "row(m + j)")]),
    Fault("writes_tokens_behind_the_last", BOUNDS, "base_mma_f16", "base/f16/t33_i64_o64",
          [("base_mma.cuh", "p.out_features, min(live - t0, TILE),", "p.out_features, TILE,")]),
    Fault("writes_behind_the_list", BOUNDS, "route_few_f32", "route/f32/t1_k2_e8_i64_uniform_softmax_selected",
          [("route_token.cuh", "place = lane; place < p.top_k;", "place = lane; place < p.top_k + 4096;")]),
    Fault("rank_check_dropped", BOUNDS, "shrink_few_f32_f32", "shrink/f32/t5_k2_e8_r4_i64_distinct",
          [("shrink.cu", "    if (r >= tile.slot.rank) return;\n", "")]),
    Fault("routes_behind_the_last_chunk", GLOBAL, "plan_place", "plan/f32/t513_k1_e8_uniform",
          [("plan.cu", "        if (n >= p.routes) return;\n", "")]),
    Fault("accumulation_of_two_blocks", GLOBAL, "base_few_f32", "base/f32/t5_i64_o16",
          [("base.cu", "((X*)p.y)[(size_t)(t0 + m) * p.y_stride + o] = narrow<X>(sum + bias);",
            "X& y = ((X*)p.y)[(size_t)(t0 + m) * p.y_stride + (o & ~8u)]; y = narrow<X>(widen(y) + sum + bias);")]),
    Fault("counts_shared_by_chunks", GLOBAL, "plan_chunks", "plan/f32/t1000_k2_e8_uniform",
          [("plan.cu", "p.words + p.at_counts + (size_t)chunk * p.experts;", "p.words + p.at_counts;")]),
    Fault("reduction_one_step_short", WRONG, "route_few_f32", "route/f32/t5_k4_e64_i160_uniform_softmax_selected",
          [("common.cuh", "step > 0; step /= 2) v += __shfl_xor_sync", "step > 1; step /= 2) v += __shfl_xor_sync")]),
    Fault("bit_of_another_expert", WRONG, "route_few_f32", "route/f32/t20_k2_e8_i64_uniform_softmax_selected_masked",
          [("route_token.cuh", "e / 32) >> e % 32 & 1", "e / 32) >> (e + 1) % 32 & 1")]),
    Fault("list_of_another_request", WRONG, "route_many_f32", "route/f32/t129_k2_e40_i64_uniform_softmax_selected_masked",
          [("route_token.cuh", "<= t) low = middle + 1;", "< t) low = middle + 1;")]),
    Fault("threshold_not_compared", WRONG, "route_few_f32", "route/f32/t5_k4_e8_i64_uniform_softmax_all_threshold",
          [("route_token.cuh", "/ total > threshold);", "/ total > 0.0f);")]),
    Fault("threshold_not_learned", WRONG, "route_many_f32", "route/f32/t129_k4_e8_i64_uniform_softmax_all_learned_threshold",
          [("route_token.cuh", "p.threshold * sigmoid(last) : p.threshold", "p.threshold : p.threshold")]),
    Fault("sums_over_stages", RACE, "route_many_f32", "route/f32/t129_k2_e40_i128_uniform_softmax_selected",
          [("route_many.cuh", "    __syncthreads(); // the sums lie where the stages do\n", "")]),
    Fault("list_merged_too_early", RACE, "route_many_f32", "route/f32/t129_k2_e40_i64_uniform_softmax_selected",
          [("route_many.cuh", "list[lane + 32]};\n        __syncwarp();\n", "list[lane + 32]};\n")]),
    Fault("one_warp_left_out", WRONG, "shrink_mma_f16", "shrink/f16/t33_k2_e8_r16_i512_uniform",
          [("shrink_mma.cuh", "for (u32 w = 0; w < WARPS; w++) {\n        float4", "for (u32 w = 1; w < WARPS; w++) {\n        float4")]),
    Fault("swizzle_removed", BANKS, "base_mma_f16", "base/f16/t129_i160_o129",
          [("base_mma.cuh", "PARTS * row + (part ^ (row / 2 % 4))", "PARTS * row + part")]),
    Fault("vector_load_of_odd_rows", MISALIGNED, "base_many_f32", "base/f32/t33_i65_o33",
          [("common.cuh", "    if (vector && i + N <= k) return load<N>(row + i);", "    if (i + N <= k) return load<N>(row + i);")]),
    Fault("vector_store_of_odd_rows", MISALIGNED, "expand_many_f32_f32", "expand/f32/t33_k2_e8_r16_o65_uniform",
          [("common.cuh", "    if (!vector || count < N) {\n", "    if (count < N) {\n")]),
    Fault("tail_not_zeroed", UNWRITTEN, "base_mma_f16", "base/f16/t33_i64_o64",
          [("base_mma.cuh", "            copy16(tile + to", "            if (inside) copy16(tile + to")]),
    Fault("routes_behind_the_last", UNWRITTEN, "shrink_mma_f16", "shrink/f16/t33_k2_e8_r16_i64_uniform",
          [("shrink_mma.cuh", "s.x_rows[min(first + i, s.count - 1)]", "s.x_rows[first + i]")]),
    Fault("warp_barrier_missing", RACE, "plan_one", "plan/f32/t60_k2_e8_uniform",
          [("plan.cu", "            else __syncwarp();\n", "")]),
    Fault("warp_barrier_missing_in_rounds", RACE, "expand_mma_f16", "expand/f16/t33_k3_e8_r16_o64_repeated",
          [("expand_mma.cuh", "i % 2 == 1 && pair.inside[1]);\n        __syncwarp();\n", "i % 2 == 1 && pair.inside[1]);\n")]),
    Fault("shuffle_in_a_branch", INACTIVE, "base_few_f32", "base/f32/t5_i64_o16",
          [("rows.cuh", "sums[m] = warp_sum(even[m] + odd[m]);",
            "{ if (threadIdx.x % 32 < 16) sums[m] = warp_sum(even[m] + odd[m]); }")]),
    Fault("shuffle_without_a_lane", DIVERGENT, "plan_scan", "plan/f32/t1000_k2_e8_uniform",
          [("plan.cu", "        u32 other = __shfl_up_sync(ALL_LANES, upto, step);\n        if (lane >= step) upto += other;\n",
            "        if (lane >= step) upto += __shfl_up_sync(ALL_LANES, upto, step);\n")]),
    Fault("barrier_in_a_branch", DIVERGENT, "expand_few_f32_f32", "expand/f32/t5_k2_e8_r16_o64_uniform",
          [("expand.cu", "            __syncthreads();\n            if (!inside) continue;\n",
            "            if (!inside) continue;\n            __syncthreads();\n")]),
    Fault("barrier_of_one_warp", DEADLOCK, "shrink_mma_bf16", "shrink/bf16/t33_k2_e8_r16_i64_uniform",
          [("shrink_mma.cuh", "    if (threadIdx.x < 32) find_tile(p, s, threadIdx.x);\n",
            '    if (threadIdx.x < 32) {\n find_tile(p, s, threadIdx.x);\n asm volatile("bar.sync 1, 256;" ::: "memory");\n }\n')]),
    Fault("h_read_before_it_is_there", f"{GLOBAL} or {UNWRITTEN}", "fused_few_mma_f16", "fused/f16/t5_k2_e8_r16_i64_o64_uniform_few",
          [("fused_few.cuh", "        wait_for_h(p);\n", "")]),
    Fault("h_published_without_release", GLOBAL, "fused_few_mma_f16", "fused/f16/t5_k2_e8_r16_i64_o64_uniform_few",
          [("fused_few.cuh", "fence.acq_rel.gpu;\\n\\tred", "red")]),
    Fault("h_awaited_without_acquire", GLOBAL, "fused_few_f32_f32", "fused/f32/t5_k2_e8_r16_i64_o64_uniform_few",
          [("fused_few.cuh", "ld.acquire.gpu.global.u32", "ld.relaxed.gpu.global.u32")]),
    Fault("job_that_is_not_counted", LONG, "fused_few_mma_bf16", "fused/bf16/t5_k2_e8_r16_i64_o64_uniform_few",
          [("fused_few.cuh", "        publish(p);\n", "        if (ticket > 0) publish(p);\n")]),
    Fault("rows_summed_too_early", GLOBAL, "grouped_mma_f16", "grouped/f16/t33_k2_g4_e3_r16-5-8_i64_o64_uniform_combined_x_per_route",
          [("grouped_tile.cuh", "before + 1 == expected_rows(p, group, live)", "before == 0")]),
    Fault("rows_handed_on_without_release", GLOBAL, "grouped_mma_f16", "grouped/f16/t33_k2_g4_e3_r16-5-8_i64_o64_uniform_combined_x_per_route",
          [("grouped_tile.cuh", "fence.acq_rel.gpu;\\n\\tatom.relaxed", "atom.relaxed")]),
    Fault("counter_left_as_it_was", WRONG, "grouped_mma_f16",
          "grouped/f16/t33_k2_g4_e3_r16-5-8_i64_o64_uniform_combined_x_per_route "
          "grouped/f16/t33_k2_g4_e3_r16-5-8_i64_o64_uniform_combined_x_per_route",
          [("grouped_tile.cuh", 'asm volatile("st.relaxed.gpu.global.u32 [%0], 0;"', 'if (p.tiles == 0) asm volatile("st.relaxed.gpu.global.u32 [%0], 0;"')]),
    Fault("lora_of_another_route", WRONG, "grouped_mma_bf16", "grouped/bf16/t33_k2_g4_e3_r16-5-8_i64_o64_uniform_plain",
          [("grouped_tile.cuh", " || s.loras[route] != walk.at) return", ") return")]),
    Fault("gate_and_up_not_interleaved", WRONG, "grouped_mma_f16", "grouped/f16/t33_k2_g4_e3_r16-5-8_i64_o64_uniform_gated_x_per_route",
          [("grouped_mma.cuh", "up = gated && row % 16 >= 8", "up = gated && row % 32 >= 16")]),
    Fault("pair_barrier_missing", EARLY, "fused_concat", "test cuda_gate an_engine_may_multiply_itself",
          [("fused_concat.cuh", "    __syncthreads();\n", "")]),
    Fault("pair_of_rows_behind_the_last", BOUNDS, "fused_concat", "test cuda_gate an_engine_may_multiply_itself",
          [("fused_concat.cuh", "o < min(o0 + ROWS, p.out_features)", "o < o0 + ROWS")]),
    Fault("pair_of_the_wrong_ranks", WRONG, "fused_concat", "test cuda_gate an_engine_may_multiply_itself",
          [("fused_concat.cuh", "(const Bits*)p.b + (size_t)(r0 + r)", "(const Bits*)p.b + (size_t)(r0 + (r ^ 1))")]),
    Fault("query_barrier_missing", EARLY, "attend_f32", "attend/f32/t9_k2_e8_r16_q8_i64_uniform",
          [("attend.cu", "    __syncthreads();\n    float root", "    float root")]),
    Fault("score_of_no_expert", BOUNDS, "attend_bf16", "attend/bf16/t9_k3_e8_r16_q8_i64_with_gaps",
          [("attend.cu", "        if (e != NONE) {\n", "        {\n")]),
    Fault("step_over_columns_off_by_one", UNWRITTEN, "attend_f16", "attend/f16/t9_k2_e8_r16_q33_i64_uniform",
          [("attend.cu", "if (column >= width) row++", "if (column > width) row++")]),
    Fault("flag_that_nobody_sets", LONG, "plan_place", "plan/f32/t1000_k2_e8_uniform",
          [("plan.cu", "    u32 chunk = blockIdx.x;\n    for", "    u32 chunk = blockIdx.x;\n    while (*(volatile u32*)p.words != NONE) {}\n    for")]),
]


def load_compile():
    """kernels/compile as a module."""
    path = ROOT / "kernels" / "compile"
    loader = importlib.machinery.SourceFileLoader("kernels_compile", str(path))
    sys.dont_write_bytecode = True
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def entries(text):
    """The kernels of a text that kernels/compile joined: name -> its lines."""
    found = re.findall(r"^(\.visible \.entry (\w+)\(.*?^\})", text, flags=re.M | re.S)
    return {name: body for body, name in found}


def shorten(text, kernel):
    """A room without the element types that the kernel has no use for: the compiler takes seconds for them."""
    parts = kernel.split("_")
    kept = rf"{parts[0].upper()}_X\({parts[2]}," if parts[1] in ("few", "many") else "NONE"
    return re.sub(rf"^(?!{kept})(SHRINK|EXPAND)_X\(.*$", "", text, flags=re.M)


def plant(fault, compiler, bin_folder):
    """The whole text with the fault in its room; says what is stale instead of a text where an edit finds no place."""
    folder = OUT / fault.name
    room = "gate" if fault.kernel.startswith(("fused_gate", "fused_concat")) else fault.kernel.split("_")[0]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "kernels", folder, ignore=shutil.ignore_patterns("ptx", "compile"))
    for file, old, new in fault.edits:
        text = (folder / file).read_text()
        if text.count(old) != 1:
            return None, f"stale: {file} has {text.count(old)} times: {old.strip().splitlines()[0]}"
        (folder / file).write_text(text.replace(old, new))
    source = folder / f"{room}.cu"
    source.write_text(shorten(source.read_text(), fault.kernel))
    out = folder / "room.ptx"
    flags = ["-ptx", "-O3", "-std=c++17", "-arch=compute_80", "-I", folder, "-o", out]
    compiler.run(bin_folder, "nvcc", *flags, source)
    planted = entries(compiler.join("sm_80", [out.read_text()]))
    committed = PTX.read_text()
    kernels = entries(committed)
    if fault.kernel not in planted or not planted.keys() <= kernels.keys():
        return None, f"stale: no kernel {fault.kernel}"
    if planted[fault.kernel] == kernels[fault.kernel]:
        return None, "stale: the compiler made the same text of it"
    for name, body in planted.items():
        committed = committed.replace(kernels[name], body)
    (folder / "all.ptx").write_text(committed)
    return folder / "all.ptx", None


def run_case(case, **variables):
    """What the example says of a case on the machine, and what the machine says."""
    environment = dict(os.environ, MOLORA_REQUIRE="cuda", MOLORA_DEVICE="cuda", LD_LIBRARY_PATH=str(OUT / "libcuda"),
                       PTX_MACHINE_LIMIT="3000000", **NO_WEBGPU, **variables)
    command = [BUILT / "examples" / "case", *case.split()]
    if case.startswith("test "):
        _, file, name = case.split()
        command = [tests()[file], name, "--exact", "--nocapture"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if not case.startswith("test "):
        return done.stdout.strip(), done.stderr.strip()
    said = [line for line in done.stderr.splitlines() if line.startswith("ptx machine: ") and ": kernel " in line]
    panic = re.search(r"panicked at .*\n(.*)", done.stderr)
    what = "right" if done.returncode == 0 and "1 passed" in done.stdout else f"wrong: {panic[1] if panic else ''}"
    return f"{case}: {what}", "\n".join(said)


@functools.cache
def tests():
    """The tests' files that faults name, built: file -> program."""
    files = sorted({fault.case.split()[1] for fault in FAULTS if fault.case.startswith("test ")})
    arguments = ["--workspace", "--no-run", "--message-format", "json"]
    arguments += [part for file in files for part in ("--test", file)]
    done = subprocess.run(["cargo", "test", "-q", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["target"]["name"]: line["executable"] for line in lines if line.get("executable")}


def conflicts(kernel, counters):
    """Wavefronts above the ideal of a kernel's shared accesses, by the launches' lines; None where it did not run."""
    lines = [json.loads(line) for line in counters.read_text().splitlines()] if counters.exists() else []
    shared = [line["counters"][name] for line in lines if line["kernel"] == kernel
              for name in ("shared_loads", "shared_stores", "shared_copies")]
    return sum(s["wavefronts"] - s["ideal"] for s in shared) if shared else None


def judge(fault, path):
    """What reported the fault; and whether that is what should have."""
    counters = OUT / fault.name / "counters.jsonl"
    counters.unlink(missing_ok=True)
    out, err = run_case(fault.case, PTX_MACHINE_PTX=str(path), PTX_MACHINE_COUNTERS=str(counters))
    found = re.search(r"^ptx machine: (.+?): kernel (\w+), line (.*)$", err, flags=re.M)
    if found:
        text = f"{found[1]}: {found[2]}, {found[3]}"
        return text, found[1] in fault.report.split(" or ") and found[2] == fault.kernel
    if fault.report == BANKS:
        above = conflicts(fault.kernel, counters)
        return f"{above} wavefronts above the ideal", bool(above) and ": right" in out
    text = out.splitlines()[-1].split(": ", 1)[-1] if out else err
    return text, fault.report == WRONG and text.startswith("wrong: ") and "refused" not in text


def right_without(fault):
    """Why the fault's case says nothing of the fault, or None: it must be right, and run the kernel."""
    counters = OUT / f"{fault.name}.jsonl"
    counters.unlink(missing_ok=True)
    out, err = run_case(fault.case, PTX_MACHINE_COUNTERS=str(counters))
    above = conflicts(fault.kernel, counters)
    counters.unlink(missing_ok=True)
    if ": right" not in out or err:
        return f"not right without the fault: {out} {err}"
    if above is None:
        return f"{fault.case} does not run {fault.kernel}"
    return f"{above} wavefronts above the ideal without the fault" if fault.report == BANKS and above else None


def attempt(fault, compiler, bin_folder):
    """Plants one and runs it: (whether it was reported, by what)."""
    why = right_without(fault)
    if why is None:
        path, why = plant(fault, compiler, bin_folder)
    if why is not None:
        return False, why
    text, good = judge(fault, path)
    return good, text


def build():
    """The runner and the machine."""
    subprocess.run(["cargo", "build", "-q", "--workspace", "--lib", "--example", "case"], cwd=ROOT, check=True)
    folder = OUT / "libcuda"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ["libcuda.so", "libcuda.so.1"]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(BUILT / "libptx_machine.so")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--some", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    faults = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    if options.some:
        faults = list({fault.report: fault for fault in reversed(faults)}.values())
    if options.list:
        for fault in faults:
            print(f"{fault.name:32} {fault.report:32} {fault.kernel:20} {fault.case}")
        return 0
    build()
    if any(fault.case.startswith("test ") for fault in faults):
        tests()
    compiler = load_compile()
    bin_folder = compiler.tools()
    silent = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda fault: attempt(fault, compiler, bin_folder), faults)
        for fault, (good, text) in zip(faults, results):
            print(f"{'ok  ' if good else 'FAIL'} {fault.name:32} {fault.report:32} {' '.join(text.split())[:240]}", flush=True)
            if not good:
                silent.append(fault.name)
    print(f"{len(faults) - len(silent)} of {len(faults)} faults reported as they should be")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
