#!/usr/bin/env python3
"""Empty libraries in the place of the CUDA libraries that a PyTorch wheel names and its CPU half never calls.

Every library that the loader misses for torch's own gets a file of its name beside the wheel's other CUDA libraries, with the
symbols and versions that torch asks of it; a call ends the process. Needs gcc, nm, objdump and ldd. Run by setup.sh.
"""
import collections
import pathlib
import re
import subprocess
import sysconfig
import tempfile

TRAP = "void {}(void) {{ __builtin_trap(); }}\n"
# Symbols without a version, told from Python's and C++'s by their names.
CUDA = re.compile(r"p?(cu|nccl|nv)[A-Za-z]")


def output(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout


def asked(library):
    """(missing libraries, {version: library}, [(symbol, version)]) of one library."""
    missing = re.findall(r"(\S+) => not found", output("ldd", library))
    versions, provider = {}, None
    for line in output("objdump", "-p", library).splitlines():
        if found := re.match(r"\s+required from (\S+):", line):
            provider = found[1]
        elif provider and (found := re.match(r"\s+0x\S+ 0x\S+ \d+ (\S+)", line)):
            versions[found[1]] = provider
        else:
            provider = None
    symbols = [line.split() for line in output("nm", "-D", "--undefined-only", library).splitlines()]
    return missing, versions, [(s[-1].partition("@")[0], s[-1].partition("@")[2].lstrip("@")) for s in symbols if s[0] == "U"]


def main():
    site = pathlib.Path(sysconfig.get_paths()["purelib"])
    libraries = sorted(p for p in (site / "torch" / "lib").glob("*.so*") if p.name.startswith(("libtorch", "libc10", "libshm")))
    missing, nodes, plain = set(), collections.defaultdict(lambda: collections.defaultdict(set)), set()
    for library in libraries:
        names, versions, symbols = asked(library)
        missing.update(names)
        for symbol, version in symbols:
            if version in versions:
                nodes[versions[version]][version].add(symbol)
            elif not version and CUDA.match(symbol):
                plain.add(symbol)
    have = {re.sub(r"@.*", "", line.split()[-1]) for p in list(site.glob("nvidia/**/*.so*")) + libraries
            for line in output("nm", "-D", "--defined-only", p).splitlines()}
    plain -= have
    folder = site / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(missing):
        own = nodes[name]
        symbols = sorted(set().union(*own.values(), plain))
        plain = set()  # where they lie does not matter: the first library has them
        with tempfile.TemporaryDirectory() as scratch:
            source, script = pathlib.Path(scratch, "stub.c"), pathlib.Path(scratch, "stub.map")
            source.write_text("".join(TRAP.format(s) for s in symbols) or "typedef int nothing;\n")
            script.write_text("".join(f"{v} {{ global: {'; '.join(sorted(s))}; }};\n" for v, s in own.items()))
            versioned = [f"-Wl,--version-script,{script}"] if own else []
            subprocess.run(["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", source, "-o", folder / name, f"-Wl,-soname,{name}", *versioned],
                           check=True)
    print(f"{len(missing)} stand-ins in {folder}")


main()
