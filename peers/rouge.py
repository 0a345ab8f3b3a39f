"""ROUGE of `infini eval summarize --score` beside PyPI's rouge-score, on 100 pairs of people's summaries.

pip install rouge-score
rouge.py target/release/infini squality/dev.jsonl
"""

import json
import subprocess
import sys
import tempfile

from rouge_score import rouge_scorer

binary, data = sys.argv[1:]
scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
rows = []
for line in open(data):
    for question in json.loads(line)["questions"]:
        first, *others = [r["response_text"] for r in question["responses"]]
        rows.append({"prediction": first, "references": others})
rows = rows[:100]
with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
    file.flush()
    out = subprocess.run([binary, "eval", "summarize", "--score", file.name, "--json", "-"], check=True, capture_output=True)
ours = json.loads(out.stdout)["rows"]
worst = 0
for row, mine in zip(rows, ours, strict=True):
    theirs = scorer.score_multi(row["references"], row["prediction"])
    worst = max(worst, *(abs(theirs[name].fmeasure - mine[name]) for name in theirs))
print(f"{len(rows)} pairs, worst difference {worst:.1e}")
sys.exit(worst > 1e-9)
