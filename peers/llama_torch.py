"""A plain Llama decoder in PyTorch, eager, attention through scaled_dot_product_attention.

llama_torch.py train|forward HIDDEN LAYERS HEADS FFN THREADS
"""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

from worker import parameters, serve

VOCAB, TOKENS, BATCH, HEAD = 1024, 512, 4, 64


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, 0, 0.02)
    return layer


class Block(nn.Module):
    def __init__(self, hidden, ffn):
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.mlp_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.q, self.k, self.v, self.o = (linear(hidden, hidden) for _ in range(4))
        self.gate, self.up, self.down = linear(hidden, ffn), linear(hidden, ffn), linear(ffn, hidden)

    def forward(self, x, cos, sin):
        batch, tokens, hidden = x.shape

        def heads(y):
            return y.view(batch, tokens, hidden // HEAD, HEAD).transpose(1, 2)

        def rotate(y):
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        h = self.attention_norm(x)
        q, k, v = rotate(heads(self.q(h))), rotate(heads(self.k(h))), heads(self.v(h))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, tokens, hidden))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, hidden, layers, ffn):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, hidden)
        nn.init.normal_(self.embedding.weight, 0, 0.02)
        self.blocks = nn.ModuleList(Block(hidden, ffn) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-5)
        frequency = 10000.0 ** (-torch.arange(HEAD // 2).double() / (HEAD / 2))
        angle = torch.outer(torch.arange(TOKENS).double(), frequency).repeat(1, 2)
        self.cos, self.sin = angle.cos().float(), angle.sin().float()

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embedding.weight)


def main():
    mode, (hidden, layers, heads, ffn, threads) = sys.argv[1], map(int, sys.argv[2:])
    assert hidden == heads * HEAD
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Llama(hidden, layers, ffn)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def train():
        ids = torch.randint(0, VOCAB, (BATCH, TOKENS + 1))
        loss = F.cross_entropy(model(ids[:, :-1]).view(-1, VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    def forward():
        with torch.inference_mode():
            return model(torch.randint(0, VOCAB, (BATCH, TOKENS)))

    serve({"train": train, "forward": forward}[mode], parameters(model), BATCH * TOKENS)


main()
