//! Conversations: every token is read once, and what was saved goes on as if nothing had happened.

use std::ops::ControlFlow;

use infini::config::{Activation, Attention, InfiniConfig, ModelConfig};
use infini::conversation::{Conversation, History};
use infini::folder::{Loaded, Parts};
use infini::generate::{Finish, Sampler, Sampling};
use infini::session::Session;
use infini::text::Tokenizer;
use infini::text::chat::TemplateSource;
use infini::{Error, Weights};
use infini_format::io::RealIo;
use infini_format::memory::Partner;

const TEMPLATE: &str = "{% for m in messages %}{{ '<a>' + m['role'] + '\n' + m['content'] + '<b>\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<a>assistant\n' }}{% endif %}";

/// A random model with a template, special tokens `<a>` and `<b>`.
fn loaded(attention: Attention, room: usize, template: &str) -> Loaded {
    let plain = Tokenizer::train(std::iter::once("ab".into()), 256).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&plain.to_json()).unwrap();
    let token = |id: u32, content: &str| {
        serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                            "normalized": false, "special": true })
    };
    json["added_tokens"] = serde_json::json!([token(256, "<a>"), token(257, "<b>")]);
    let config = ModelConfig {
        vocab_size: 258,
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 0,
        head_dim: 0,
        intermediate_size: 32,
        hidden_act: Activation::Silu,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        qkv_bias: false,
        max_position_embeddings: room,
        attention,
        infini: InfiniConfig { segment_len: 16, ..InfiniConfig::preset("selective-linear").unwrap() },
    };
    let hash = infini_format::hash::sha256(b"x");
    let identity =
        Partner { weights: hash.clone(), adapter: None, tokenizer: hash.clone(), config: hash, segment_len: 16 };
    let parts = Parts {
        weights: Weights::init(&config, 3),
        config,
        tokenizer: Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap(),
        identity,
        stop: Vec::new(),
        end: vec![257],
        template: Some(TemplateSource { template: template.into(), bos: String::new(), eos: "<b>".into() }),
    };
    parts.build().unwrap()
}

fn greedy() -> Sampler {
    Sampler::new(Sampling::default()).unwrap()
}

fn say(c: &mut Conversation, text: &str, n: usize) -> (String, infini::conversation::Turn) {
    let mut out = String::new();
    let turn = c.say(text, &mut greedy(), n, &mut |part| {
        out.push_str(part);
        ControlFlow::Continue(())
    });
    (out, turn.unwrap())
}

#[test]
fn every_token_is_read_once() {
    for attention in [Attention::Full, Attention::Infini] {
        let l = loaded(attention, 0, TEMPLATE);
        let mut c = Conversation::new(&l, l.model.state(1)).unwrap();
        let (first, turn) = say(&mut c, "hello", 5);
        assert_eq!((turn.again, turn.forgotten, turn.finish), (0, 0, Finish::Length));
        assert_eq!(turn.read, l.tokenizer.encode("user\nhello\nassistant\n").len() + 3);
        let before = c.state().position();
        assert_eq!(before as usize, turn.read + turn.written);
        let (_, turn) = say(&mut c, "again", 5);
        // the end of the cut answer, and the new turn
        assert_eq!(turn.read, l.tokenizer.encode("\nuser\nagain\nassistant\n").len() + 4);
        assert_eq!(c.state().position() - before, (turn.read + turn.written) as u64);
        assert_eq!(c.history().messages[1].content, first);
        assert_eq!(c.history().messages.len(), 4);
    }
}

#[test]
fn a_saved_conversation_goes_on_bit_identically_and_reads_nothing_again() {
    let l = loaded(Attention::Infini, 0, TEMPLATE);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("talk.mem");
    let mut unbroken = Conversation::new(&l, l.model.state(1)).unwrap();
    say(&mut unbroken, "one, two, three", 20);
    let mut session = Session::new(&l);
    session.converse(unbroken.state().fork(), unbroken.history().clone());
    session.save(&RealIo, &path, None).unwrap();

    let restored = Session::open(&l, &RealIo, &path).unwrap();
    let history: History = restored.progress().chat.clone().unwrap();
    assert_eq!(history, *unbroken.history());
    let mut resumed = Conversation::resume(&l, restored.state().fork(), history).unwrap();
    let (a, b) = (say(&mut unbroken, "and?", 20), say(&mut resumed, "and?", 20));
    assert_eq!(a, b);
    assert_eq!(b.1.again, 0);
    let bits = |c: &Conversation| c.state().logits().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&unbroken), bits(&resumed));
}

#[test]
fn full_attention_forgets_the_oldest_turns_when_it_must() {
    let l = loaded(Attention::Full, 200, TEMPLATE);
    let mut c = Conversation::new(&l, l.model.state(1)).unwrap();
    c.system("be brief").unwrap();
    let mut forgotten = 0;
    for i in 0..12 {
        let (_, turn) = say(&mut c, &format!("message {i}"), 8);
        forgotten += turn.forgotten;
        assert!(c.state().position() <= 200);
    }
    assert!(forgotten >= 2, "{forgotten}");
    assert_eq!(c.history().messages[0].role, "system");
    let mut ignore = |_: &str| ControlFlow::Continue(());
    let position = c.state().position();
    let refused = c.say(&"x".repeat(300), &mut greedy(), 8, &mut ignore);
    assert!(matches!(refused, Err(Error::Input(_))), "{refused:?}");
    assert_eq!(c.state().position(), position, "after an error nothing was said");
    let memory = loaded(Attention::Infini, 200, TEMPLATE);
    let mut c = Conversation::new(&memory, memory.model.state(1)).unwrap();
    (0..12).for_each(|i| assert_eq!(say(&mut c, &format!("message {i}"), 8).1.forgotten, 0));
    assert!(c.state().position() > 200, "a memory has no such end");
}

#[test]
fn a_template_that_changes_its_past_is_read_again() {
    // only the last message is written
    let last = "{{ '<a>' + messages[-1]['content'] + '<b>' }}";
    let l = loaded(Attention::Infini, 0, last);
    let mut c = Conversation::new(&l, l.model.state(1)).unwrap();
    let first = say(&mut c, "one", 4).1;
    let second = say(&mut c, "two", 4).1;
    assert_eq!((first.again, second.again, second.read), (0, 5, 5));
    assert_eq!(c.state().position(), (second.read + second.written) as u64);
}

#[test]
fn what_cannot_talk_says_so() {
    let mut l = loaded(Attention::Infini, 0, TEMPLATE);
    let mut c = Conversation::new(&l, l.model.state(1)).unwrap();
    say(&mut c, "hi", 1);
    assert!(c.system("too late").is_err());
    l.template = None;
    assert!(Conversation::new(&l, l.model.state(1)).unwrap_err().to_string().contains("instruct model"));
}
