#!/usr/bin/env python3
"""Reads the TensorBoard events of a run folder with PyPI's `tensorboard` and compares them with its
`metrics.jsonl`: every row, every scalar that both hold.

    pip install tensorboard && python3 peers/read_events.py RUN
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SAME = {
    "train/loss": "loss",
    "train/token_loss": "token_loss",
    "train/answer_loss": "answer_loss",
    "train/answer_accuracy": "answer_accuracy",
    "train/gradient_norm": "gradient_norm",
    "train/lr": "lr",
    "gates/penalty": "penalty",
    "speed/tokens_per_second": "tokens_per_second",
}


def main():
    run = Path(sys.argv[1])
    rows = {r["step"]: r for r in map(json.loads, (run / "metrics.jsonl").open())}
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    compared = 0
    for tag, key in SAME.items():
        expected = {step: row[key] for step, row in rows.items() if row[key] is not None}
        found = {e.step: e.value for e in events.Scalars(tag)} if tag in events.Tags()["scalars"] else {}
        assert found.keys() == expected.keys(), f"{tag}: steps {sorted(found.keys() ^ expected.keys())} are in one file only"
        for step, value in expected.items():
            assert abs(found[step] - value) <= 1e-6 * max(1.0, abs(value)), f"{tag} at {step}: {found[step]}, not {value}"
            compared += 1
    assert compared, "nothing to compare"
    print(f"{compared} values in {len(rows)} rows agree")


if __name__ == "__main__":
    main()
