"""Tiny random models with the logits of PyTorch's `transformers`, vocabularies with the ids of llama.cpp, and chat
templates as Jinja2 renders them: what `infini`'s loaders are compared with.

pip install torch==2.15.0 transformers==5.24.0 tokenizers gguf==0.19.0 llama-cpp-python==0.3.36 jinja2==3.1.6
pretrained_golden.py golden/pretrained
"""

import json
import sys
import unicodedata
from pathlib import Path

import gguf
import jinja2
import jinja2.ext
import jinja2.sandbox
import llama_cpp
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUT = Path(sys.argv[1])
PROSE = (Path(__file__).parent.parent / "ARCHITECTURE.md").read_text()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "",
    " ",
    "Hello world",
    "The pass key is 9054.",
    "It's 12:30, isn't it? We'll SEE, they'RE here",
    "  two  blanks   three\t\ttabs \t mixed",
    "line\nline\n\n  indented\r\n\r\nend \n ",
    "naïve café ÀÉÎ 東京 привет ١٢٣ ½ ² Ⅳ",
    "\U0001f600 emoji\u200djoined e\u0301 \u00a0nbsp\u3000wide",
    "x=(a+b)*c[1]; // comment!!! ... --- ___",
    "1234567890 3.14159 1,000,000 0x1F",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|>",
]


def byte_level(regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


def words(digits):
    split = pre_tokenizers.Split(Regex(WORDS.replace("DIGITS", digits)), "isolated")
    return pre_tokenizers.Sequence([split, byte_level(False)])


def bpe(splitter, size, normalizer=None):
    """A byte-level BPE of `size` entries learnt from the project's own page, special tokens behind."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = splitter
    t.decoder = decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator([PROSE], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    t.add_special_tokens(SPECIAL)
    return t


def vocabulary(writer, t, pre, bos=False):
    state = json.loads(t.to_str())
    ids = t.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(m) for m in state["model"]["merges"]])
    writer.add_bos_token_id(ids["<|im_start|>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_add_bos_token(bos)


def sizes(writer, c):
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)


NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def permuted(w, heads):
    """As llama.cpp's conversion does for the llama architecture."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, arch, c, state, t, pre):
    writer = gguf.GGUFWriter(str(path), arch)
    sizes(writer, c)
    writer.add_rope_freq_base(THETA)
    vocabulary(writer, t, pre)
    for name, w in state.items():
        w = w.float().numpy()
        if arch == "llama" and "q_proj" in name:
            w = permuted(w, c.num_attention_heads)
        if arch == "llama" and "k_proj" in name:
            w = permuted(w, c.num_key_value_heads)
        if w.ndim == 2:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(w, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


THETA = 50_000.0
SHAPE = dict(vocab_size=260, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5)
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, dict(tie_word_embeddings=True, max_position_embeddings=64)),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, dict(sliding_window=32, head_dim=6, max_position_embeddings=64)),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, dict(use_sliding_window=False, max_position_embeddings=64)),
}


def family(name):
    config_class, model_class, more = FAMILIES[name]
    c = config_class(**SHAPE, **more, rope_parameters={"rope_type": "default", "rope_theta": THETA}, bos_token_id=258, eos_token_id=259, pad_token_id=None)
    torch.manual_seed(1)
    m = model_class(c).eval()
    with torch.no_grad():
        for p in m.parameters():
            middle = 1.0 if p.ndim == 1 and p.shape[0] == c.hidden_size else 0.0
            p.copy_(middle + 0.3 * torch.randn_like(p))
    m = m.to(torch.bfloat16)
    folder = OUT / name
    # two shards for one of them
    m.save_pretrained(folder, max_shard_size="12KB" if name == "qwen2" else "1GB")
    t = bpe(byte_level(True), 257)
    t.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML, "eos_token": "<|im_end|>"}) + "\n")
    ids = torch.randint(0, 260, (1, 30), generator=torch.Generator().manual_seed(2))
    # read back: a cast of the module would leave its angles rounded
    m = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = m(ids).logits[0]
    save_file({"ids": ids[0], "logits": logits[::5].contiguous()}, str(folder / "expected.safetensors"))
    if name != "mistral":
        state = {k: v for k, v in m.state_dict().items() if not (c.tie_word_embeddings and k == "lm_head.weight")}
        write_gguf(OUT / f"{name}.gguf", name, c, state, t, "gpt-2")


SPLITTERS = {
    "gpt-2": (byte_level(True), None),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(True)]), None),
    "qwen2": (words(r"\p{N}"), normalizers.NFC()),
    "llama-bpe": (words(r"\p{N}{1,3}"), None),
}


def vocabularies():
    rows = {}
    for pre, (splitter, normalizer) in SPLITTERS.items():
        t = bpe(splitter, 300, normalizer)
        path = OUT / f"vocabulary-{pre}.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        c = FAMILIES["llama"][0](**SHAPE, max_position_embeddings=64)
        sizes(writer, c)
        writer.add_vocab_size(303)
        vocabulary(writer, t, pre, bos=pre == "llama-bpe")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        # llama.cpp leaves out the normalisation of Qwen2's own tokenizer
        normal = (lambda s: unicodedata.normalize("NFC", s)) if normalizer else (lambda s: s)
        rows[pre] = [{"text": s, "ids": theirs.tokenize(normal(s).encode(), add_bos=False, special=False)} for s in TEXTS]
    (OUT / "vocabularies.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n")


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "inst": """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}
    {% else %}
{{ ' ' + message['content'].strip() + eos_token -}}
    {% endif %}
{% endfor %}""",
    "headers": """{%- set system = '' -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{{- bos_token ~ '<|start|>system<|end|>\n' ~ system ~ '\n\n' -}}
{%- for message in messages -%}
    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('unknown role ' + message.role) }}{% endif -%}
    <|start|>{{ message.role | upper }}<|end|>{{ message.content | replace('\n', ' ') }}
    {%- if not loop.last %}{{ '\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt is defined and add_generation_prompt -%}
    {{- '<|start|>ASSISTANT<|end|>' -}}
{%- endif -%}""",
    "python": """{% set ns = namespace(n=0, last='') %}
{% for m in messages %}
    {% if m.content is string and m.content.startswith('th') %}
        {% set ns.n = ns.n + 1 %}
        {% continue %}
    {% endif %}
    {% set ns.last = m.content.split(' ')[-1] %}
- {{ m.role.title() }}: {{ m.content[:5] }}|{{ m.content | length }}|{{ m.get('name', 'none') }}|{{ m | tojson }}
    {# nothing #}
{% endfor %}
{{ ns.n }} {{ ns.last }} {{ messages | map(attribute='role') | join(',') }} {{ 'x' if tools is not defined else 'y' }}
{%- macro twice(t) %}{{ t }}{{ t }}{% endmacro %}
{{ twice('ab') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[::-1][0].role }}""",
}
TALKS = [
    [("user", "hi")],
    [("user", " padded \n"), ("assistant", "  an answer "), ("user", "then?")],
    [("system", "Be brief."), ("user", "two\nlines")],
    [("user", "tell me"), ("assistant", ""), ("user", "the <end> & \"quotes\" é 東")],
    [("user", "a"), ("user", "b")],
]


def templates():
    rows = []
    for name, source in TEMPLATES.items():
        env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])

        def raise_exception(why):
            raise jinja2.exceptions.TemplateError(why)

        env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
        env.globals["raise_exception"] = raise_exception
        template = env.from_string(source)
        for talk in TALKS:
            for answer in (False, True):
                messages = [{"role": r, "content": c} for r, c in talk]
                try:
                    text = template.render(messages=messages, add_generation_prompt=answer, bos_token="<s>", eos_token="</s>")
                except jinja2.exceptions.TemplateError:
                    text = None
                rows.append({"template": name, "messages": messages, "answer": answer, "text": text})
    table = {"templates": TEMPLATES, "rows": rows}
    (OUT / "chat.json").write_text(json.dumps(table, ensure_ascii=False, indent=0) + "\n")


templates()
for name in FAMILIES:
    family(name)
vocabularies()
