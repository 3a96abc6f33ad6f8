#!/usr/bin/env python3
"""ggml on the CPU (PyPI package ggml-python) as a contender: `ggml_peer.py` serves (contender.py).

The layer as an engine on ggml builds it: mul_mat for the base; mul_mat_id with A, times the gates, mul_mat_id with B, and the sum
over a token's experts. Variants are the weights' type: f32, f16, q8_0 (A and B: f16). A graph for every copy of the weights, made
before; a call computes one.
"""
import ctypes

import ggml
import numpy as np

from contender import THREADS, Contender

# Pointers that the package declares as int, which cuts them to 32 bits.
for function in ("ggml_backend_cpu_init", "ggml_backend_cpu_buffer_type", "ggml_backend_alloc_ctx_tensors_from_buft", "ggml_gallocr_new"):
    getattr(ggml, function).restype = ctypes.c_void_p
SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
ggml.ggml_log_set(SILENT, None)
BACKEND = ggml.ggml_backend_cpu_init()
ggml.ggml_backend_cpu_set_n_threads(BACKEND, THREADS)
TYPES = {"f32": ggml.GGML_TYPE_F32, "f16": ggml.GGML_TYPE_F16, "q8_0": ggml.GGML_TYPE_Q8_0, "i32": ggml.GGML_TYPE_I32}
BITS = {"f32": 32, "f16": 16, "q8_0": 8.5}


def context(tensors, graphs=0):
    size = ggml.ggml_tensor_overhead() * tensors + graphs * ggml.ggml_graph_overhead() + 4096
    return ggml.ggml_init(ggml.ggml_init_params(mem_size=size, mem_buffer=None, no_alloc=True))


def pointer(values):
    return values.ctypes.data_as(ctypes.c_void_p)


def encoded(values, kind):
    values = np.ascontiguousarray(values)
    if kind == "f16":
        return values.astype(np.float16)
    if kind != "q8_0":
        return values
    rows, width = values.size // values.shape[-1], values.shape[-1]
    bytes_ = np.empty(rows * ggml.ggml_row_size(TYPES[kind], width), np.uint8)
    floats = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    ggml.ggml_quantize_chunk(TYPES[kind], floats, pointer(bytes_), 0, rows, width, None)
    return bytes_


class Tensors:
    """Copies of one array, in memory of their own."""

    def __init__(self, values, kind, copies=1):
        self.context = context(copies + 1)
        sizes = (ctypes.c_int64 * values.ndim)(*reversed(values.shape))
        self.copies = [ggml.ggml_new_tensor(self.context, TYPES[kind], values.ndim, sizes) for _ in range(copies)]
        self.buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(self.context, ggml.ggml_backend_cpu_buffer_type())
        if not self.buffer:
            raise MemoryError(f"{copies} copies of {values.shape}")
        data = encoded(values, kind)
        for tensor in self.copies:
            ggml.ggml_backend_tensor_set(tensor, pointer(data), 0, data.nbytes)

    def __getitem__(self, i):
        return self.copies[i % len(self.copies)]

    def __len__(self):
        return len(self.copies)

    def __del__(self):
        if getattr(self, "buffer", None):
            ggml.ggml_backend_buffer_free(self.buffer)
        ggml.ggml_free(self.context)


class Series:
    """A graph for each of `copies`, made by `build(context, i)`; `kept` holds the tensors that they read."""

    def __init__(self, copies, build, kept):
        self.kept, self.memory = kept, ggml.ggml_gallocr_new(ggml.ggml_backend_cpu_buffer_type())
        self.contexts, self.graphs = [], []
        for i in range(copies):
            here = context(64, 1)
            graph, y = ggml.ggml_new_graph(here), build(here, i)
            ggml.ggml_set_output(y)
            ggml.ggml_build_forward_expand(graph, y)
            if not ggml.ggml_gallocr_alloc_graph(self.memory, graph):
                raise MemoryError("a graph's results")
            self.contexts.append(here)
            self.graphs.append((graph, y))

    def __call__(self, i):
        graph, y = self.graphs[i % len(self.graphs)]
        status = ggml.ggml_backend_graph_compute(BACKEND, graph)
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute: {status}")
        return Result(y)

    def __del__(self):
        ggml.ggml_gallocr_free(self.memory)
        for here in self.contexts:
            ggml.ggml_free(here)


class Result:
    """y, read out only where somebody asks."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __array__(self, dtype=None, copy=None):
        sizes = [self.tensor.contents.ne[i] for i in range(4)]
        values = np.empty((sizes[3] * sizes[2] * sizes[1], sizes[0]), np.float32)
        ggml.ggml_backend_tensor_get(self.tensor, pointer(values), 0, values.nbytes)
        return values


def prepare(case, arrays):
    tokens, top_k, width = case["T"], case["k"], case["d_out"]
    x, ids = Tensors(arrays["x"][:, None, :], "f32"), Tensors(arrays["idx"], "i32")
    made = {}
    for kind, bits in BITS.items():
        copies = max(1, int(case["copies"]["W"] * 32 / bits))
        if case["kind"] == "ggemm":
            w = Tensors(arrays["we"], kind, copies)
            product = lambda here, i, w=w: ggml.ggml_mul_mat_id(here, w[i], x[0], ids[0])
            made["ggemm", kind] = Series(copies, product, (w, x, ids))
            continue
        small = "f16" if kind == "q8_0" else kind
        w = Tensors(arrays["w"], kind, copies)
        a, b = (Tensors(arrays[name], small, case["copies"]["AB"]) for name in "ab")
        gates = Tensors((arrays["gate"] * np.float32(case["scale"]))[:, :, None], "f32")
        kept = (x, ids, w, a, b, gates)

        def base(here, i, w=w):
            return ggml.ggml_mul_mat(here, w[i], ggml.ggml_reshape_2d(here, x[0], case["d_in"], tokens))

        def experts(here, i, a=a, b=b, gates=gates, onto=None):
            h = ggml.ggml_mul(here, ggml.ggml_mul_mat_id(here, a[i], x[0], ids[0]), gates[0])
            rows = ggml.ggml_mul_mat_id(here, b[i], h, ids[0])  # [d_out, k, T]
            slot, token = rows.contents.nb[1], rows.contents.nb[2]
            for j in range(top_k):
                part = ggml.ggml_view_2d(here, rows, width, tokens, token, j * slot)
                onto = part if onto is None else ggml.ggml_add(here, onto, part)
            return onto if onto.contents.nb[1] == width * 4 else ggml.ggml_cont(here, onto)

        def layer(here, i, base=base, experts=experts):
            return experts(here, i, onto=base(here, i))

        made["base", kind] = Series(len(w), base, kept)
        made["lora", kind] = Series(len(a), experts, kept)
        made["layer", kind] = Series(max(len(w), len(a)), layer, kept)
    return made


if __name__ == "__main__":
    Contender("ggml", ggml.ggml_version().decode(), prepare).serve()
