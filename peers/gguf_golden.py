"""Blocks of every GGUF type with their values by llama.cpp's own package (`pip install gguf==0.19.0`).

gguf_golden.py golden/pretrained/quants.gguf
"""

import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

TYPES = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]
# where the f16 scales of a block stand, in bytes
SCALES = {Q.Q8_0: [0], Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}

writer = gguf.GGUFWriter(sys.argv[1], "none")
rng = np.random.default_rng(0)
for kind in TYPES:
    if kind in SCALES:
        size = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
        for at in SCALES[kind]:
            blocks[:, at : at + 2] = rng.normal(0, 0.1, (3, 1)).astype(np.float16).view(np.uint8)
    else:
        blocks = gguf.quants.quantize(rng.normal(0, 1, (3, 32)).astype(np.float32), kind)
    name = kind.name.lower()
    values = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    writer.add_tensor(name, blocks, raw_dtype=None if kind in (Q.F32, Q.F16) else kind)
    writer.add_tensor(f"{name}.values", values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
