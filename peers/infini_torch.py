"""infini-transformer-pytorch, its own wrapper and delta rule.

infini_torch.py train|forward|generate|greedy DIM DEPTH HEADS SEGMENT TOKENS THREADS

train     one optimiser step on TOKENS tokens, as the wrapper does it: memories detached every two segments
forward   logits of TOKENS tokens, segment by segment
generate  512 tokens with the wrapper's generate(): nucleus sampling
greedy    the same calls of the model, but the largest logit taken: no sampling
"""

import sys

import torch
import infini_transformer_pytorch.wrapper as wrapper_module
from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

from worker import parameters, serve

VOCAB, HEAD, NEW = 1024, 64, 512


def main():
    mode, (dim, depth, heads, segment, tokens, threads) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    wrapper_module.tqdm = lambda steps: steps  # no progress bar
    model = InfiniTransformer(
        num_tokens=VOCAB, dim=dim, depth=depth, dim_head=HEAD, heads=heads, use_mem_delta_rule=True
    )
    wrapper = InfiniTransformerWrapper(model, segment_length=segment, detach_mems_every_num_segments=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    if mode != "train":
        model.eval()

    def train():
        loss = wrapper(torch.randint(0, VOCAB, (1, tokens + 1)), backward=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @torch.inference_mode()
    def forward():
        memories = None
        for part in torch.randint(0, VOCAB, (1, tokens)).split(segment, -1):
            _, _, memories = model(part, past_memories=memories, return_new_memories=True)

    def generate():
        wrapper.generate(seq_len=NEW + 1, prompt=torch.randint(0, VOCAB, (1, 1)))

    @torch.inference_mode()
    def greedy():
        out, cached, memories = torch.randint(0, VOCAB, (1, 1)), None, None
        for length in range(1, NEW + 1):
            start = (length - 1) // segment * segment
            logits, cached, memories = model(
                out[:, start:],
                cached_kv=cached,
                past_memories=memories,
                return_new_memories=length % segment == 0,
            )
            out = torch.cat((out, logits[:, -1].argmax(-1, keepdim=True)), -1)

    work = {"train": train, "forward": forward, "generate": generate, "greedy": greedy}[mode]
    serve(work, parameters(model), tokens if mode in ("train", "forward") else NEW)


main()
