"""The worker's side of the protocol that compare.py speaks (`infini bench worker` speaks it too).

Out: `ready {"parameters": N, "tokens": M}` once the work has run and is warm; M tokens a repetition.
In:  a number of repetitions, one a line.
Out: `SECONDS TOKENS`, for all of them. The worker ends with its input.
"""

import json
import sys
import time


def serve(work, parameters, tokens):
    """Runs `work` whenever it is asked for."""
    work()
    print("ready", json.dumps({"parameters": parameters, "tokens": tokens}), flush=True)
    for line in sys.stdin:
        repetitions = int(line)
        start = time.perf_counter()
        for _ in range(repetitions):
            work()
        print(f"{time.perf_counter() - start:.6f} {repetitions * tokens}", flush=True)


def parameters(model):
    """Trainable numbers, each counted once."""
    return sum(p.numel() for p in model.parameters())
