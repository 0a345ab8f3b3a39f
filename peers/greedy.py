"""Greedy tokens of `infini generate` beside llama.cpp's, on the GGUF rewritten with F32 tensors: on quantised tensors
llama.cpp also rounds the activations, and texts part at near-ties.

pip install gguf==0.19.0 llama-cpp-python==0.3.36
greedy.py MODEL.gguf target/release/infini
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little girl who",
    "The three laws of motion are",
    "To make a good cup of tea, you",
    "def fibonacci(n):\n",
    "In the year 1905, Albert Einstein",
    "The difference between a virus and a bacterium is",
    "Dear Sir or Madam,\n\n",
    "1, 1, 2, 3, 5, 8, 13,",
    "The largest planet of the solar system is",
    "Question: What is the boiling point of water?\nAnswer:",
    "It was a dark and stormy night;",
    "Photosynthesis is the process by which",
    "My favourite colour is",
    "The quick brown fox",
    "<html>\n<head>\n",
    "A list of fruits:\n- apple\n-",
    "If it rains tomorrow, we will",
    "The Roman Empire fell because",
    "Paris, London, Berlin and",
]


def rewrite(source, target):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        writer.add_tensor(t.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def theirs(model, prompt):
    ids = model.tokenize(prompt.encode(), add_bos=False, special=False)
    model.reset()
    model.eval(ids)
    out = []
    while len(out) < TOKENS:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1), (model.n_vocab(),))
        token = int(np.argmax(logits))
        out.append(token)
        if token == model.token_eos():
            break
        model.eval([token])
    return ids, out


def ours(binary, path, prompt):
    command = [binary, "--threads", "1", "generate", "--model", path, "--prompt", prompt, "--max-tokens", str(TOKENS), "--json", "-"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["ids"]


with tempfile.TemporaryDirectory() as folder:
    path = str(Path(folder) / "f32.gguf")
    rewrite(sys.argv[1], path)
    model = llama_cpp.Llama(path, n_ctx=512, n_threads=1, type_k=0, type_v=0, flash_attn=False, verbose=False)
    equal = 0
    for prompt in PROMPTS:
        ids, expected = theirs(model, prompt)
        got = ours(sys.argv[2], path, prompt)
        same = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
        equal += got == expected
        print(f"{same:3} of {len(expected):3} tokens equal  {prompt!r}", flush=True)
print(f"{equal} of {len(PROMPTS)} continuations equal")
sys.exit(equal != len(PROMPTS))
