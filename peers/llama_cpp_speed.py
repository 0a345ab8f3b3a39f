"""Reading and decoding of a pretrained model beside llama.cpp: the same GGUF file, threads and tokens, in turns.

pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36   (built here, for this processor)
llama_cpp_speed.py MODEL.gguf target/release/infini [--threads 1] [--rounds 7] [--json FILE]

Prints tokens per second of core time and of wall time, and the median, least and largest ratio between neighbours.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

WORKS = {"read": ("smollm2-135m-read-bf16", 1024), "decode": ("smollm2-135m-decode-bf16", 64)}


def serve_llama(path, work, threads):
    import llama_cpp
    import numpy as np
    from worker import serve

    tokens = WORKS[work][1]
    model = llama_cpp.Llama(path, n_ctx=2048, n_batch=1024, n_ubatch=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    ids = [(i * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 32 for i in range(tokens)]
    ids = [i % model.n_vocab() for i in ids]

    def read():
        model.reset()
        model.eval(ids)

    def decode():
        model.reset()
        token = 0
        for _ in range(tokens):
            model.eval([token])
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1), (model.n_vocab(),))
            token = int(np.argmax(logits))

    serve({"read": read, "decode": decode}[work], 0, tokens)


def compare(args):
    from compare import Worker

    path, binary = Path(args.model).resolve(), Path(args.binary).resolve()
    cores = set(sorted(os.sched_getaffinity(0))[: args.threads])
    rows = []
    for work, (case, _) in WORKS.items():
        us = [binary, "--threads", args.threads, "bench", "worker", "--case", case, "--model", path]
        them = [sys.executable, Path(__file__).resolve(), path, binary, "--serve", work, "--threads", args.threads]
        env = {"RAYON_NUM_THREADS": str(args.threads)}
        workers = [Worker("infini", us, args.threads, cores, env), Worker("llama.cpp", them, args.threads, cores, env)]
        ratios = {"wall": [], "core": []}
        times = {w.program: {"wall": [], "core": []} for w in workers}
        for round in range(args.rounds):
            got = {}
            for w in workers if round % 2 == 0 else workers[::-1]:
                wall, core = w.work()
                got[w.program] = {"wall": wall, "core": core}
                times[w.program]["wall"].append(wall)
                times[w.program]["core"].append(core)
            for kind in ratios:
                ratios[kind].append(got["llama.cpp"][kind] / got["infini"][kind])
        row = {"work": work, "threads": args.threads, "rounds": args.rounds}
        for w in workers:
            row[w.program] = {
                "tokens_per_second": 1 / statistics.median(times[w.program]["wall"]),
                "tokens_per_core_second": 1 / statistics.median(times[w.program]["core"]),
                "peak_rss_bytes": w.peak_memory(),
            }
            w.end()
        for kind, r in ratios.items():
            row[f"{kind}_ratio"] = {"median": statistics.median(r), "min": min(r), "max": max(r)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"schema": 1, "rows": rows}, indent=2) + "\n")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("binary")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--json")
parser.add_argument("--serve", choices=WORKS)
args = parser.parse_args()
if args.serve:
    serve_llama(args.model, args.serve, args.threads)
else:
    compare(args)
