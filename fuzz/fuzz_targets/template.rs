//! No chat template crashes its reader, and what one writes is bounded.
#![no_main]

use infini::text::chat::{ChatTemplate, Message, TemplateSource};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let template = String::from_utf8_lossy(data).into_owned();
    let source = TemplateSource { template, bos: "<s>".into(), eos: "</s>".into() };
    let Ok(template) = ChatTemplate::new(&source) else { return };
    let messages = [Message::new("system", "You help."), Message::new("user", "{{ hi }}")];
    for answer in [false, true] {
        if let Ok(text) = template.render(&messages, answer) {
            assert!(text.len() <= (1 << 20) + 64, "{} bytes", text.len());
        }
    }
});
