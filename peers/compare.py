#!/usr/bin/env python3
"""Speed and memory of `infini` beside PyTorch and infini-transformer-pytorch, in one interleaved run.

Every program is a worker process, pinned to the same cores; within a round each works once, the order
turns from round to round, and a ratio is taken between neighbours of one round. Printed are medians over
the rounds, beside what the machine does at best. PyTorch runs twice: as shipped, and with MKL told to take
its AVX-512 path, which it leaves unused on processors that are not Intel's.

    cargo build --release && python3 peers/compare.py --out docs/results/speed.csv --report docs/results/speed.md

makes the tables of docs/results in less than half an hour. A case that stands in the CSV file is not measured
again, so an interrupted run goes on where it stopped; delete the file to begin anew. The first run makes a
virtual environment under peers/.venv (about 5 GB, most of it PyTorch).
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OURS, SHIPPED, FAST = "infini", "peer", "peer, MKL AVX-512"


@dataclass
class Case:
    """One piece of work, ours and the peer's."""

    name: str
    ours: str  # case of `infini bench worker`
    peer: str | None  # script and its arguments, without the threads
    fast: float | None = None  # targets: our speed over the fast peer's,
    shipped: float | None = None  # over the peer's as shipped,
    memory: float | None = None  # our peak memory over the peer's


def llama(size, mode, shape, **targets):
    name = f"llama-{size}-{mode}"
    return Case(name, name, f"llama_torch.py {mode} {shape}", **targets)


def infini(size, mode, shape, ours=None, **targets):
    script = f"infini_torch.py {mode.removesuffix('-bf16')} {shape}"
    return Case(f"infini-{size}-{mode}", f"infini-{size}-{ours or mode}", script, **targets)


SMALL, LARGE = "256 4 4 256 2048", "512 4 8 512 4096"
CASES = [
    llama(256, "train", "256 4 4 704", fast=1.1, memory=0.25),
    llama(576, "train", "576 6 9 1536", fast=1.0, memory=0.25),
    llama(576, "forward", "576 6 9 1536"),
    infini(256, "train", SMALL, fast=1.5, shipped=2.4, memory=0.5),
    infini(256, "forward", SMALL, fast=1.4, shipped=2.4, memory=0.5),
    infini(256, "generate", SMALL, ours="decode", fast=5.0, shipped=6.0, memory=0.5),
    infini(256, "greedy", SMALL, ours="decode", fast=5.0, shipped=6.0, memory=0.5),
    infini(512, "train", LARGE, fast=1.5, shipped=2.4, memory=0.5),
    infini(512, "forward", LARGE, fast=1.4, shipped=2.4, memory=0.5),
    infini(512, "generate", LARGE, ours="decode", fast=5.0, shipped=6.0, memory=0.5),
    infini(512, "greedy", LARGE, ours="decode", fast=5.0, shipped=6.0, memory=0.5),
    # half the bytes a weight: not the peer's numbers, so no target counts
    infini(512, "greedy-bf16", LARGE, ours="decode-bf16"),
    Case("smollm2-135m-read-bf16", "smollm2-135m-read-bf16", None),
    Case("smollm2-135m-decode-bf16", "smollm2-135m-decode-bf16", None),
]


class Worker:
    """A program waiting for work."""

    def __init__(self, program, command, threads, cores, env):
        self.program, self.threads = program, threads
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **env},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            sys.exit(f"{program} did not start: {' '.join(map(str, command))}: run it by itself to see why")
        self.about = json.loads(line.removeprefix("ready "))
        self.wall, self.cpu = [], []  # seconds a token, one entry a round
        self.repetitions = 1

    def cpu_seconds(self):
        """Time its threads have spent on a core."""
        total = 0
        for stat in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            total += int(stat.read_text().split()[0])
        return total / 1e9

    def work(self):
        """Seconds a token of wall and of core time."""
        before = self.cpu_seconds()
        print(self.repetitions, file=self.process.stdin, flush=True)
        seconds, tokens = map(float, self.process.stdout.readline().split())
        return seconds / tokens, (self.cpu_seconds() - before) / tokens

    def peak_memory(self):
        """Bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        sys.exit(f"{self.program} has ended")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


COLUMNS = [
    "case", "threads", "program", "tokens_per_second", "peak_rss_bytes", "speed_ratio", "speed_ratio_min",
    "speed_ratio_max", "core_time_ratio", "memory_ratio", "scaling", "flops_per_second", "gemm_peak_flops",
    "fma_peak_flops", "memory_read_bytes_per_second", "rounds",
]  # fmt: skip


def machine(binary, threads, cores):
    """What the machine does at best, as `infini bench` measures it."""
    command = [binary, "bench", "machine", "--threads", str(threads), "--json", "-"]
    pin = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
    out = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=pin).stdout
    return json.loads(out)["machine"]


def environment(venv):
    """Makes the virtual environment if it is not there; the Python in it, and the library that opens AVX-512."""
    python = venv / "bin" / "python"
    if not python.exists():
        print(f"installing the peers under {venv}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
    library = venv / "mkl_avx512.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, HERE / "mkl_avx512.c"], check=True)
    return python, library


def mkl_path(python, env):
    """The instruction set that MKL says it takes."""
    program = "import torch; x = torch.ones(64, 64); x @ x"
    env = {**os.environ, "MKL_VERBOSE": "1", **env}
    out = subprocess.run([python, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
    first = next((line for line in out.splitlines() if "for Intel" in line), "MKL says nothing")
    return first.removeprefix("MKL_VERBOSE ").strip()


def run(case, binary, python, library, threads, rounds, seconds):
    """All programs on one case, interleaved: a row of COLUMNS for each and each number of threads."""
    available = sorted(os.sched_getaffinity(0))
    workers, best = [], {}
    for n in threads:
        if n > len(available):
            sys.exit(f"{n} threads were asked for, {len(available)} cores are there")
        cores = set(available[-n:])
        best[n] = machine(binary, n, cores)
        ours = [binary, "bench", "worker", "--case", case.ours, "--threads", n]
        workers.append(Worker(OURS, ours, n, cores, {}))
        if case.peer:
            script, *arguments = case.peer.split()
            theirs = [python, HERE / script, *arguments, n]
            workers.append(Worker(SHIPPED, theirs, n, cores, {}))
            workers.append(Worker(FAST, theirs, n, cores, {"LD_PRELOAD": str(library)}))
    tokens = {w.about["tokens"] for w in workers}
    assert len(tokens) == 1, f"{case.name}: repetitions of different sizes: {tokens}"
    sizes = [w.about["parameters"] for w in workers]
    assert max(sizes) < 1.01 * min(sizes), f"{case.name}: models of different sizes: {sizes}"
    for w in workers:
        once = w.work()[0] * w.about["tokens"]
        w.repetitions = max(1, round(seconds / once))
    for r in range(rounds):
        for w in workers if r % 2 == 0 else reversed(workers):
            wall, cpu = w.work()
            w.wall.append(wall)
            w.cpu.append(cpu)
    rows = []
    for w in workers:
        peaks = best[w.threads]
        speed = 1 / statistics.median(w.wall)
        row = dict.fromkeys(COLUMNS, "")
        row |= {"case": case.name, "threads": w.threads, "program": w.program, "rounds": rounds}
        row |= {"tokens_per_second": round(speed, 1), "peak_rss_bytes": w.peak_memory()}
        row |= {"gemm_peak_flops": round(peaks["gemm_flops"]), "fma_peak_flops": round(peaks["fma_flops"])}
        row |= {"memory_read_bytes_per_second": round(peaks["memory_read_bytes"])}
        one = next(o for o in workers if o.program == w.program and o.threads == min(threads))
        if w.threads > one.threads == 1:
            row["scaling"] = round(statistics.median(a / b for a, b in zip(one.wall, w.wall)), 3)
        ours = next(o for o in workers if o.program == OURS and o.threads == w.threads)
        if w is ours:
            row["flops_per_second"] = round(w.about["flops"] / w.about["tokens"] * speed)
        else:
            ratio = [a / b for a, b in zip(w.wall, ours.wall)]
            row |= {"speed_ratio": round(statistics.median(ratio), 3)}
            row |= {"speed_ratio_min": round(min(ratio), 3), "speed_ratio_max": round(max(ratio), 3)}
            row["core_time_ratio"] = round(statistics.median(a / b for a, b in zip(w.cpu, ours.cpu)), 3)
            row["memory_ratio"] = round(ours.peak_memory() / w.peak_memory(), 3)
        rows.append({k: str(v) for k, v in row.items()})
    for w in workers:
        w.end()
    return rows


def table(rows):
    """Markdown."""
    head = ["case", "threads", "program", "tok/s", "infini is faster by", "by core time", "target", "peak RSS"]
    head += ["infini's share", "target", "2 threads / 1", "of gemm peak", "machine: gemm, multiply-add, read"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    cases = {c.name: c for c in CASES}
    for r in rows:
        case = cases[r["case"]]
        target = {SHIPPED: case.shipped, FAST: case.fast}.get(r["program"])
        cells = [r["case"], r["threads"], r["program"], f"{float(r['tokens_per_second']):,.0f}"]
        spread = f"{r['speed_ratio']} [{r['speed_ratio_min']}..{r['speed_ratio_max']}]" if r["speed_ratio"] else ""
        cells += [spread, r["core_time_ratio"], f"≥ {target}" if target else ""]
        cells += [f"{int(r['peak_rss_bytes']) / 2**20:,.0f} MiB", r["memory_ratio"]]
        cells += [f"≤ {case.memory}" if r["memory_ratio"] and case.memory else "", r["scaling"]]
        flops, gemm = r["flops_per_second"], int(r["gemm_peak_flops"])
        cells += [f"{int(flops) / gemm:.0%}" if flops else ""]
        peaks = f"{gemm / 1e9:.0f} GFLOP/s, {int(r['fma_peak_flops']) / 1e9:.0f} GFLOP/s, "
        cells += [peaks + f"{int(r['memory_read_bytes_per_second']) / 1e9:.0f} GB/s" if flops else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load(path):
    """Rows of an earlier run."""
    if not path or not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and list(rows[0]) != COLUMNS:
        sys.exit(f"{path} has other columns: it is of an older version: delete it to measure anew")
    return rows


def save(rows, path):
    """CSV, written whole and then renamed."""
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    part.replace(path)


def report(path, text):
    """Puts the tables between the two marks of a document."""
    begin, end = "<!-- measured by peers/compare.py -->", "<!-- end -->"
    document = path.read_text()
    before, rest = document.split(begin)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2", help="thread counts, e.g. 1,2")
    parser.add_argument("--out", type=Path, help="CSV file to write or go on with, e.g. docs/results/speed.csv")
    parser.add_argument("--report", type=Path, help="document whose tables are replaced; long inputs are read, too")
    parser.add_argument("--quick", action="store_true", help="three short rounds instead of seven long ones")
    parser.add_argument("--cases", default="", help="only cases whose name holds one of these, e.g. 256-train,greedy")
    parser.add_argument("--venv", type=Path, default=HERE / ".venv", help="where the peers are (to be) installed")
    parser.add_argument("--infini", type=Path, default=ROOT / "target/release/infini", help="our binary")
    args = parser.parse_args()
    if not args.infini.exists():
        sys.exit(f"no binary: {args.infini}: run cargo build --release first, or name another with --infini")
    threads = [int(n) for n in args.threads.split(",")]
    rounds, seconds = (3, 0.5) if args.quick else (5, 1.5)
    wanted = [part for part in args.cases.split(",") if part]
    cases = [c for c in CASES if not wanted or any(part in c.name for part in wanted)]
    if not cases:
        sys.exit(f"no case: {args.cases}: there are {', '.join(c.name for c in CASES)}")

    python, library = environment(args.venv.absolute())
    print("MKL as shipped:", mkl_path(python, {}))
    print("MKL AVX-512:", mkl_path(python, {"LD_PRELOAD": str(library)}))
    print("load before:", os.getloadavg(), flush=True)
    rows = load(args.out)
    for case in cases:
        done = {r["threads"] for r in rows if r["case"] == case.name}
        if done >= set(map(str, threads)):
            print(f"{case.name} stands in {args.out}", file=sys.stderr)
            continue
        rows = [r for r in rows if r["case"] != case.name]
        rows += run(case, args.infini.absolute(), python, library, threads, rounds, seconds)
        print(f"{case.name} done", file=sys.stderr, flush=True)
        if args.out:
            save(rows, args.out)
    print("load after:", os.getloadavg())
    text = table(rows)
    print(text)
    if args.report:
        command = [args.infini.absolute(), "bench", "stream", "save", "--threads", "1"]
        long = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.rstrip()
        report(args.report, f"{text}\n\nLong inputs, on one thread:\n\n```\n{long}\n```")


if __name__ == "__main__":
    main()
