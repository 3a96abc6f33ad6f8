"""A contender's side of the protocol (crates/molora-check/src/contest/mod.rs says what is asked and answered)."""
import json
import os
import sys
import time

import numpy as np

THREADS = int(os.environ.get("PEERS_THREADS", "0")) or os.cpu_count()
NAMES = {"molora": ("x", "idx", "gate", "w", "a", "b", "wr", "br"), "ggemm": ("x", "idx", "gate", "we")}
MOST_CALLS = 2000


def read(case, folder):
    return {name: np.load(os.path.join(folder, f"{case['id']}.{name}.npy")) for name in NAMES[case["kind"]]}


class Contender:
    """`prepare(case, arrays)` gives {(op, variant): call}; a call takes the number of the copy and gives y."""

    def __init__(self, name, version, prepare):
        self.name, self.version, self.make, self.series = name, version, prepare, {}

    def hello(self, request):
        return {"name": self.name, "version": self.version}

    def prepare(self, request):
        self.series = {}
        case = request["case"]
        made = self.make(case, read(case, request["data"]))
        self.series = {key: call for key, call in made.items() if key[0] in case["ops"]}
        return {"series": [list(key) for key in self.series]}

    def check(self, request):
        call = self.series[request["op"], request["variant"]]
        start = time.perf_counter()
        y = call(0)
        seconds = time.perf_counter() - start
        np.save(request["out"], np.asarray(y, dtype=np.float32))
        return {"ok": True, "s": seconds}

    def time(self, request):
        call = self.series[request["op"], request["variant"]]
        if request.get("warm", True):
            call(1)
        wall, processor, begin = [], [], time.perf_counter()
        while len(wall) < MOST_CALLS:
            spent, start = time.process_time(), time.perf_counter()
            y = call(len(wall) + 2)
            wall.append(time.perf_counter() - start)
            processor.append(time.process_time() - spent)
            del y
            over = time.perf_counter() - begin + wall[-1] > request["budget"]
            if over and len(wall) >= request.get("min", 1):
                break
        return {"s": wall, "c": processor}

    def drop(self, request):
        self.series = {}
        return {"ok": True}

    def serve(self):
        # A library's chatter goes to the standard error, not between the answers.
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        known = {"hello", "prepare", "check", "time", "drop"}
        for line in sys.stdin:
            try:
                request = json.loads(line)
                if request["do"] not in known:
                    raise ValueError(f"expected one of {sorted(known)}, got {request['do']!r}")
                answer = getattr(self, request["do"])(request)
            except Exception as why:  # whatever goes wrong is the answer
                answer = {"error": f"{type(why).__name__}: {str(why)[:300]}"}
            answers.write(json.dumps(answer) + "\n")
