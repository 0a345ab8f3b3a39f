"""Ids of `infini tokenizer encode` (in pieces, on all threads) beside those of the `tokenizers` package on the whole text,
and the texts back out of the ids.

pip install tokenizers
infini convert smollm2 --out DIR && tokens.py target/release/infini DIR TEXT...
"""

import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

binary, folder, *paths = sys.argv[1:]
whole = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
whole.encode_special_tokens = True
wrong = total = 0
for path in paths:
    text = Path(path).read_bytes().decode()
    command = [binary, "tokenizer", "encode", "--tokenizer", folder, "-"]
    out = subprocess.run(command, input=text.encode(), check=True, capture_output=True).stdout
    ids = [int(i) for i in out.split()]
    same, back = ids == whole.encode(text, add_special_tokens=False).ids, whole.decode(ids, skip_special_tokens=False) == text
    wrong += not (same and back)
    total += len(ids)
    if not (same and back):
        print(f"{path}: ids {'equal' if same else 'differ'}, text {'comes back' if back else 'is lost'}")
print(f"{len(paths)} texts, {total} tokens, {wrong} wrong")
sys.exit(wrong > 0)
