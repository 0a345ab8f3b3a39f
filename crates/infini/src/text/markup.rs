//! HTML and Markdown to plain text, in linear time and without recursion, however broken the input.

use html5gum::{DefaultEmitter, Token, Tokenizer};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// What parts two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    Nothing,
    Blank,
    Line,
    Paragraph,
}

/// Words with the widest gap that was asked for between them, none before the first.
#[derive(Debug, Default)]
struct Flow {
    text: String,
    gap: Gap,
}

impl Flow {
    fn gap(&mut self, gap: Gap) {
        self.gap = self.gap.max(gap);
    }

    /// Appends a word as it is.
    fn word(&mut self, word: &str) {
        if !self.text.is_empty() {
            self.text.push_str(match self.gap {
                Gap::Nothing => "",
                Gap::Blank => " ",
                Gap::Line => "\n",
                Gap::Paragraph => "\n\n",
            });
        }
        self.gap = Gap::Nothing;
        self.text.push_str(word);
    }

    /// Appends text whose runs of blanks count as one.
    fn words(&mut self, text: &str) {
        if text.starts_with(char::is_whitespace) {
            self.gap(Gap::Blank);
        }
        for word in text.split_whitespace() {
            self.word(word);
            self.gap = Gap::Blank;
        }
        if !text.ends_with(char::is_whitespace) && self.gap == Gap::Blank && !text.is_empty() {
            self.gap = Gap::Nothing;
        }
    }

    /// Appends text whose blanks and lines are kept.
    fn lines(&mut self, text: &str) {
        if !text.is_empty() {
            self.word(text);
        }
    }

    fn finish(self) -> String {
        self.text
    }
}

/// Elements whose contents are no text.
const HIDDEN: [&str; 11] =
    ["script", "style", "head", "template", "noscript", "svg", "math", "iframe", "object", "select", "textarea"];
/// Elements that stand alone, parted from the rest by an empty line.
const BLOCKS: [&str; 32] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "ul",
];
/// Elements on a line of their own.
const LINES: [&str; 4] = ["br", "li", "tr", "caption"];

/// The text of an HTML document; one that calls itself XML is read as XHTML.
pub fn html(source: &str) -> String {
    text_of(source, source.trim_start().starts_with("<?xml"))
}

/// The text of an XHTML document.
pub fn xhtml(source: &str) -> String {
    text_of(source, true)
}

fn text_of(source: &str, xml: bool) -> String {
    let mut emitter = DefaultEmitter::default();
    // The contents of <script>, <title> and the like are no tags in HTML; in XML they are, and
    // <title/> is complete.
    emitter.naively_switch_states(!xml);
    let mut flow = Flow::default();
    let mut pre = 0usize;
    // The hidden element that is open, and how many of its name are open inside it.
    let mut hidden: Option<(String, usize)> = None;
    for Ok(token) in Tokenizer::new_with_emitter(source, emitter) {
        match token {
            Token::StartTag(tag) => {
                let name = String::from_utf8_lossy(&tag.name).into_owned();
                // A <head> that nobody closes ends where the <body> begins.
                if name == "body" && hidden.as_ref().is_some_and(|(open, _)| open == "head") {
                    hidden = None;
                }
                if let Some((open, depth)) = &mut hidden {
                    *depth += usize::from(*open == name && !tag.self_closing);
                } else if HIDDEN.contains(&name.as_str()) {
                    if !tag.self_closing {
                        hidden = Some((name, 1));
                    }
                } else {
                    border(&mut flow, &name);
                    match name.as_str() {
                        "pre" => pre += 1,
                        "li" => flow.word("- "),
                        "td" | "th" => flow.gap(Gap::Blank),
                        _ => {}
                    }
                }
            }
            Token::EndTag(tag) => {
                let name = String::from_utf8_lossy(&tag.name).into_owned();
                match &mut hidden {
                    Some((open, depth)) if *open == name => {
                        *depth -= 1;
                        if *depth == 0 {
                            hidden = None;
                        }
                    }
                    Some(_) => {}
                    None => {
                        border(&mut flow, &name);
                        if name == "pre" {
                            pre = pre.saturating_sub(1);
                        }
                    }
                }
            }
            Token::String(text) if hidden.is_none() => {
                let text = String::from_utf8_lossy(&text);
                if pre > 0 { flow.lines(&text) } else { flow.words(&text) }
            }
            _ => {}
        }
    }
    flow.finish()
}

fn border(flow: &mut Flow, name: &str) {
    if BLOCKS.contains(&name) {
        flow.gap(Gap::Paragraph);
    } else if LINES.contains(&name) {
        flow.gap(Gap::Line);
    }
}

/// The text of a Markdown document.
pub fn markdown(source: &str) -> String {
    let mut flow = Flow::default();
    let mut code = false;
    // HTML comes in pieces of which only all together are sound.
    let mut block: Option<String> = None;
    for event in Parser::new_ext(source, Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH) {
        match event {
            Event::Start(tag) => match tag {
                Tag::CodeBlock(_) => {
                    flow.gap(Gap::Paragraph);
                    code = true;
                }
                Tag::HtmlBlock => {
                    flow.gap(Gap::Paragraph);
                    block = Some(String::new());
                }
                Tag::Item => {
                    flow.gap(Gap::Line);
                    flow.word("- ");
                }
                Tag::TableRow => flow.gap(Gap::Line),
                Tag::TableCell => flow.gap(Gap::Blank),
                // The first paragraph of an item stays on its line.
                Tag::Paragraph | Tag::Heading { .. } | Tag::BlockQuote(_) | Tag::List(_) | Tag::Table(_)
                    if !flow.text.ends_with("- ") || flow.gap != Gap::Nothing =>
                {
                    flow.gap(Gap::Paragraph);
                }
                _ => {}
            },
            Event::End(tag) => match tag {
                TagEnd::HtmlBlock => flow.lines(&html(&block.take().unwrap_or_default())),
                TagEnd::CodeBlock => {
                    code = false;
                    flow.text.truncate(flow.text.trim_end().len());
                    flow.gap(Gap::Paragraph);
                }
                TagEnd::Paragraph | TagEnd::Heading(_) | TagEnd::BlockQuote(_) | TagEnd::List(_) | TagEnd::Table => {
                    flow.gap(Gap::Paragraph);
                }
                _ => {}
            },
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) if block.is_some() => {
                if let Some(block) = &mut block {
                    block.push_str(&text);
                }
            }
            Event::Text(text) if code => flow.lines(&text),
            Event::Text(text) | Event::Code(text) => flow.words(&text),
            Event::SoftBreak => flow.gap(Gap::Blank),
            Event::HardBreak => flow.gap(Gap::Line),
            Event::Rule => flow.gap(Gap::Paragraph),
            _ => {}
        }
    }
    flow.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn html_becomes_paragraphs() {
        for (source, text) in [
            ("<p>One\n two.</p><p>Three &amp; four&nbsp;five &eacute;&#x41;.", "One two.\n\nThree & four five éA."),
            ("<html><head><title>T</title><style>p{}</style></head><body><h1>Head</h1>text</body>", "Head\n\ntext"),
            ("a<script>if (x < 1) { '</p>' }</script>b", "ab"),
            ("<ul><li>one<li>two</ul>after", "- one\n- two\n\nafter"),
            ("line<br/>next <b>bo</b>ld<i> it</i>", "line\nnext bold it"),
            ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</table>", "a b\nc"),
            ("<pre>  keep\n   this</pre> x", "  keep\n   this\n\nx"),
            ("<!-- no --><div>broken <p <q>text</div", "broken\n\ntext"),
            ("<svg><svg><text>no</text></svg>no</svg>yes", "yes"),
            ("<head><title>T</title><body>unclosed", "unclosed"),
            ("<?xml version=\"1.0\"?><html><head><title/></head><body><p>in</p></body></html>", "in"),
            ("", ""),
        ] {
            assert_eq!(html(source), text, "{source}");
        }
        assert_eq!(xhtml("<head><script src=\"x\"/><title/></head><p>a &lt; b</p>"), "a < b");
    }

    #[test]
    fn markdown_becomes_paragraphs() {
        for (source, text) in [
            ("# Head\n\nSome *words* and\n`code` [link](http://x).\n", "Head\n\nSome words and code link."),
            ("- one\n- two\n\nafter", "- one\n- two\n\nafter"),
            ("1. one\n\n   more\n2. two\n", "- one\n\nmore\n\n- two"),
            ("```rust\nfn x() {\n}\n```\nend", "fn x() {\n}\n\nend"),
            ("|a|b|\n|-|-|\n|1|2|\n", "a b\n1 2"),
            ("<div>block <b>html</b></div>\n\ntext <i>in</i> line", "block html\n\ntext in line"),
            ("a  \nb\n\n***\n\n> c", "a\nb\n\nc"),
        ] {
            assert_eq!(markdown(source), text, "{source:?}");
        }
    }

    #[test]
    fn hostile_nesting_takes_linear_time_and_no_stack() {
        let start = Instant::now();
        for unit in ["<div>", "<p><b>", "<svg>", "<pre>", "<", "&", "<!--", "<a b=\"", "<li>"] {
            html(&unit.repeat(200_000));
        }
        for unit in ["> ", "- ", "[", "*a ", "`", "<div>\n", "|", "#", "![](", "\\", "&"] {
            markdown(&unit.repeat(20_000));
        }
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
