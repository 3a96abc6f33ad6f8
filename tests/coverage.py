#!/usr/bin/env python3
"""What of the committed PTX the CUDA suite executes on the PTX machine, and what it does not.

    tests/coverage.py           run tests/cuda.sh for both texts, then say what was executed
    tests/coverage.py --again   from the last run's lines
    tests/coverage.py --lines   also print the lines that were not executed
    tests/coverage.py -- ..     arguments of `cargo test`, such as `--test shrink`

An instruction form is an opcode with all its suffixes. Forms that no test executes are compared with EXPECTED: a new one
fails, and so does a kernel of which less than SHARE is executed.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "coverage"
SETS = {"sm_80": "80", "sm_75": "75"}
SHARE = 0.7
# Why no test executes a form, by set.
# nvcc divides an index above 2^32 in another way; such a launch has too many threads for a test.
INDEX = {"div.u64": "an index above 2^32", "sub.s64": "an index above 2^32"}
EXPECTED = {"sm_80": INDEX, "sm_75": INDEX}
# tests/counters.tsv is of sm_80.
SKIPPED = {"sm_80": [], "sm_75": ["--", "--skip", "no_counter_worsens", "--skip", "the_peers_are_beaten"]}


def run(name, arguments):
    """The suite on the machine; its lines in OUT."""
    lines = OUT / f"{name}.jsonl"
    lines.unlink(missing_ok=True)
    environment = dict(os.environ, PTX_MACHINE_COVERAGE=str(lines), PTX_MACHINE_SM=SETS[name])
    command = [ROOT / "tests" / "cuda.sh", "--", *arguments, *SKIPPED[name]]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode


def executed(name):
    """Line numbers of the text that were executed."""
    found = set()
    for line in (OUT / f"{name}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["target"] == name:
            found.update(entry["lines"])
    return found


def instructions(name):
    """(line, kernel, form, text) of every instruction of the committed text."""
    kernel = None
    text = (ROOT / "kernels" / "ptx" / f"molora_{name}.ptx").read_text()
    for number, line in enumerate(text.splitlines(), 1):
        if entry := re.match(r"\.visible \.entry (\w+)", line):
            kernel = entry[1]
        # Inline PTX stands in braces of its own, so a line may begin with one.
        if form := re.match(r"\s*\{?\s*(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*(?:\.[A-Za-z0-9_:]+)*)[\s;]", line):
            yield number, kernel, form[1], line.strip()


def report(name, lines):
    """Prints a set's coverage; returns what is wrong with it."""
    done, by_kernel, by_form = executed(name), collections.defaultdict(list), collections.Counter()
    forms = collections.defaultdict(set)
    for number, kernel, form, text in instructions(name):
        by_kernel[kernel].append((number in done, number, text))
        by_form[form] += number in done
        forms[form].add(kernel)
    wrong = []
    total = sum(len(found) for found in by_kernel.values())
    print(f"{name}: {sum(by_form.values())} of {total} instructions, {sum(map(bool, by_form.values()))} of {len(by_form)} forms")
    for form in sorted(form for form, count in by_form.items() if count == 0):
        why = EXPECTED[name].get(form)
        print(f"  never executed: {form} ({', '.join(sorted(forms[form]))}){f': {why}' if why else ''}")
        if why is None:
            wrong.append(f"{name}: {form} is never executed")
    wrong += [f"{name}: {form} is executed after all" for form in EXPECTED[name] if by_form[form]]
    for kernel, found in sorted(by_kernel.items()):
        share = sum(ran for ran, _, _ in found) / len(found)
        print(f"  {kernel:28} {len(found):6} {100 * share:6.1f} %")
        if share < SHARE:
            wrong.append(f"{name}: {kernel}: {100 * share:.1f} % executed")
        if lines:
            print("".join(f"    {number}: {text}\n" for ran, number, text in found if not ran), end="")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    wrong = []
    for name in SETS:
        if not options.again and run(name, options.arguments) != 0:
            wrong.append(f"{name}: the suite fails")
        wrong += report(name, options.lines)
    print("\n".join(wrong) or "every form is executed, or known not to be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
