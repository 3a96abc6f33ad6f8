#!/usr/bin/env python3
"""PyTorch on the CPU, and PEFT on top of it, as contenders: `torch_peer.py [torch|peft]` serves (contender.py).

loop     one expert after another, as MING-MOE publishes it: its tokens found, two small products, their weighted sum added
einsum   all experts for all tokens, the weights zero where an expert was not chosen
flat     the same as two plain products with A and B of all experts beside each other, laid out before
sorted   tokens sorted by expert, two products an expert, one sum back
grouped  tokens sorted by expert, two grouped products
_bf16    weights and x in bf16
peft     PEFT's LoRA layer with an adapter a row (its mixed batch)
"""
import sys

import torch
import torch.nn.functional as F

from contender import THREADS, Contender

torch.set_grad_enabled(False)
torch.set_num_threads(THREADS)


class Layer:
    """Copies of one layer's weights, and the ways of computing its experts' part."""

    def __init__(self, case, arrays, dtype=torch.float32):
        tensor = {name: torch.from_numpy(values) for name, values in arrays.items()}
        self.experts, self.top_k, self.rank = case["E"], case["k"], case["r"]
        self.dtype, self.x = dtype, tensor["x"].to(dtype)
        self.ids, self.gates = tensor["idx"].long(), (tensor["gate"] * case["scale"]).to(dtype)
        self.scale, self.router = case["scale"], (tensor["wr"], tensor["br"])
        # Of elements of fewer bytes more copies: as much memory.
        copies = case["copies"]["W"] * (32 // torch.finfo(dtype).bits)
        self.w = [tensor["w"].to(dtype, copy=True) for _ in range(copies)]
        self.ab = [(tensor["a"].to(dtype, copy=True), tensor["b"].to(dtype, copy=True)) for _ in range(case["copies"]["AB"])]
        # Laid out before the clock starts.
        self.beside = [(a.flatten(0, 1), b.permute(1, 0, 2).flatten(1).contiguous()) for a, b in self.ab]

    def base(self, i):
        return F.linear(self.x, self.w[i % len(self.w)])

    def new(self, *shape):
        return torch.zeros(shape, dtype=self.dtype)

    def matrix(self, ids, gates):
        """[tokens, experts], zero where an expert was not chosen."""
        return self.new(ids.shape[0], self.experts).scatter_(1, ids, gates)

    def loop(self, i, ids, gates):
        a, b = self.ab[i % len(self.ab)]
        y = self.new(self.x.shape[0], b.shape[1])
        if self.x.shape[0] == 1:
            for gate, e in zip(gates[0], ids[0].tolist()):
                y += gate * F.linear(F.linear(self.x, a[e]), b[e])
            return y
        for e in range(self.experts):
            token, slot = torch.where(ids == e)
            y[token] += gates[token, slot, None] * F.linear(F.linear(self.x[token], a[e]), b[e])
        return y

    def einsum(self, i, ids, gates):
        a, b = self.ab[i % len(self.ab)]
        h = torch.einsum("ti,eri->ter", self.x, a)
        return torch.einsum("ter,eor,te->to", h, b, self.matrix(ids, gates))

    def flat(self, i, ids, gates):
        a, b = self.beside[i % len(self.beside)]
        h = F.linear(self.x, a).unflatten(1, (self.experts, self.rank)) * self.matrix(ids, gates)[..., None]
        return F.linear(h.flatten(1), b)

    def by_expert(self, ids):
        order = ids.flatten().argsort(stable=True)
        return order, order // self.top_k, torch.bincount(ids.flatten(), minlength=self.experts)

    def sorted(self, i, ids, gates):
        a, b = self.ab[i % len(self.ab)]
        order, token, counts = self.by_expert(ids)
        x, gate, first = self.x[token], gates.flatten()[order, None], 0
        rows = torch.empty((len(order), b.shape[1]), dtype=self.dtype)
        for e, count in enumerate(counts.tolist()):
            if count:
                part = slice(first, first + count)
                torch.mm(torch.mm(x[part], a[e].T) * gate[part], b[e].T, out=rows[part])
                first += count
        return self.new(self.x.shape[0], b.shape[1]).index_add_(0, token, rows)

    def grouped(self, i, ids, gates):
        a, b = self.ab[i % len(self.ab)]
        order, token, counts = self.by_expert(ids)
        ends = counts.cumsum(0).to(torch.int32)
        h = F.grouped_mm(self.x[token], a.mT, offs=ends) * gates.flatten()[order, None]
        rows = F.grouped_mm(h, b.mT, offs=ends)
        return self.new(self.x.shape[0], b.shape[1]).index_add_(0, token, rows)

    def route(self):
        weight, bias = self.router
        scores, ids = torch.topk(F.linear(self.x, weight, bias), self.top_k)
        return ids, torch.softmax(scores, dim=-1) * self.scale

    def series(self, names, suffix=""):
        made = {("base", f"linear{suffix}"): self.base}
        for name in names:
            way = getattr(self, name)
            made["lora", name + suffix] = lambda i, way=way: way(i, self.ids, self.gates)
            made["layer", name + suffix] = lambda i, way=way: self.base(i).add_(way(i, self.ids, self.gates))
            made["full", name + suffix] = lambda i, way=way: self.base(i).add_(way(i, *self.route()))
        return {key: call for key, call in made.items() if key[0] != "full" or not suffix}


def as_floats(call):
    return lambda i: call(i).float()


def prepare_torch(case, arrays):
    if case["kind"] == "ggemm":
        return prepare_grouped(case, arrays)
    names = ["loop", "flat", "sorted", "grouped"]
    # Its intermediate has tokens * experts * d_out numbers, as published: left out where that is more than 4 GB.
    if case["T"] * case["E"] * case["d_out"] * 4 <= 4e9:
        names.append("einsum")
    made = Layer(case, arrays).series(names)
    if "bf16" in case.get("tags", []):
        series = Layer(case, arrays, torch.bfloat16).series(["flat", "grouped"], "_bf16")
        made.update({key: as_floats(call) for key, call in series.items()})
    return made


def prepare_grouped(case, arrays):
    x, ids = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["idx"]).long()
    experts, top_k, width = case["E"], case["k"], case["d_out"]
    weights = [torch.from_numpy(arrays["we"]).clone() for _ in range(case["copies"]["W"])]

    def by_expert():
        order = ids.flatten().argsort(stable=True)
        return order, x[order // top_k], torch.bincount(ids.flatten(), minlength=experts)

    def back(order, rows):
        return torch.empty_like(rows).index_copy_(0, order, rows)

    def in_turn(i):
        weight, first = weights[i % len(weights)], 0
        order, sorted_x, counts = by_expert()
        rows = torch.empty((len(order), width))
        for e, count in enumerate(counts.tolist()):
            if count:
                torch.mm(sorted_x[first:first + count], weight[e].T, out=rows[first:first + count])
                first += count
        return back(order, rows)

    def grouped(i):
        order, sorted_x, counts = by_expert()
        ends = counts.cumsum(0).to(torch.int32)
        return back(order, F.grouped_mm(sorted_x, weights[i % len(weights)].mT, offs=ends))

    return {("ggemm", "sorted"): in_turn, ("ggemm", "grouped"): grouped}


def prepare_peft(case, arrays):
    if case["kind"] == "ggemm" or case["k"] != 1 or (arrays["gate"] != 1).any():
        raise ValueError("expected one adapter a row with the weight 1, as PEFT's mixed batch has it")
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    tensor = {name: torch.from_numpy(values) for name, values in arrays.items()}
    rank, experts = case["r"], case["E"]
    config = LoraConfig(r=rank, lora_alpha=int(case["scale"] * rank), lora_dropout=0.0)
    weights = [tensor["w"].clone() for _ in range(case["copies"]["W"])]

    def layer(copy):
        base = torch.nn.Linear(case["d_in"], case["d_out"], bias=False, device="meta")
        base.weight = torch.nn.Parameter(weights[copy % len(weights)], requires_grad=False)
        made = Linear(base, "0", r=rank, lora_alpha=config.lora_alpha, config=config)
        for e in range(1, experts):
            made.update_layer(str(e), rank, lora_alpha=config.lora_alpha, config=config)
        for e in range(experts):
            made.lora_A[str(e)].weight = torch.nn.Parameter(tensor["a"][e].clone(), requires_grad=False)
            made.lora_B[str(e)].weight = torch.nn.Parameter(tensor["b"][e].clone(), requires_grad=False)
        return made.eval()

    layers = [layer(copy) for copy in range(max(len(weights), case["copies"]["AB"]))]
    names = [str(e) for e in arrays["idx"].flatten()]
    x = tensor["x"][:, None, :]  # a row of the batch is a request
    return {("layer", "mixed"): lambda i: layers[i % len(layers)](x, adapter_names=names)[:, 0, :]}


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "torch"
    if name == "peft":
        import peft
        Contender("peft", f"{peft.__version__}, torch {torch.__version__}", prepare_peft).serve()
    else:
        Contender("torch", torch.__version__, prepare_torch).serve()


main()
