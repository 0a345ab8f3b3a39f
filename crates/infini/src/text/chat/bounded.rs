//! What a template may call and could make as long as it likes, or never end, with a bound: the steps of a program do not
//! count what one call does.

use minijinja::value::{Kwargs, Rest, StringInput, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, filters};

/// Longest text that one call makes, in bytes.
const MAX_TEXT: usize = 64 << 20;
/// Widest field or indentation, and most columns.
const MAX_WIDTH: usize = 1 << 10;

type Result<T> = std::result::Result<T, Error>;

/// Puts the bounded forms in place of the others.
pub(super) fn install(jinja: &mut Environment) {
    jinja.add_filter("indent", indent);
    jinja.add_filter("format", format);
    jinja.add_filter("replace", replace);
    jinja.add_filter("join", join);
    jinja.add_filter("batch", batch);
    jinja.add_filter("slice", slice);
    jinja.set_unknown_method_callback(method);
    jinja.set_formatter(write);
}

/// A list that is repeated is written item by item to its end, whatever becomes of what is written.
fn write(out: &mut Output, state: &State, value: &Value) -> Result<()> {
    let list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if list && value.len().is_some_and(|n| n > MAX_TEXT / 64) {
        return Err(refuse("a list"));
    }
    minijinja::escape_formatter(out, state, value)
}

fn refuse(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{what} of a size that no chat needs"))
}

fn narrow(what: &str, n: usize) -> Result<()> {
    if n > MAX_WIDTH { Err(refuse(what)) } else { Ok(()) }
}

fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<Value> {
    let width = match width {
        None => named.get::<Option<usize>>("width")?,
        given => given,
    };
    narrow("indent", width.unwrap_or(0))?;
    let lines = text.as_str().bytes().filter(|b| *b == b'\n').count();
    if lines.saturating_mul(width.unwrap_or(4)) > MAX_TEXT {
        return Err(refuse("indent"));
    }
    filters::indent(text, width, first, blank, named)
}

/// Widths inside a format, and those that come as arguments (`*`).
fn fields(format: &str) -> Result<()> {
    let wide = format.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    if wide || format.contains('*') { Err(refuse("format")) } else { Ok(()) }
}

fn format(state: &State, text: &Value, arguments: Rest<Value>) -> Result<Value> {
    fields(text.as_str().unwrap_or_default())?;
    filters::format(state, text, arguments)
}

/// Whether replacing `from` in `text` by `to` stays within the bound.
fn replaced(text: &str, from: &str, to: &str) -> Result<()> {
    let long = text.matches(from).count().saturating_mul(to.len()).saturating_add(text.len());
    if long > MAX_TEXT { Err(refuse("replace")) } else { Ok(()) }
}

fn replace(state: &State, text: StringInput<'_>, from: StringInput<'_>, to: StringInput<'_>) -> Result<Value> {
    replaced(text.as_str(), from.as_str(), to.as_str())?;
    filters::replace(state, text, from, to)
}

/// Whether joining stays within the bound; an item counts at least as what a value takes.
fn joined(items: &Value, between: &str) -> Result<()> {
    let mut long = 0usize;
    for item in items.try_iter()? {
        long = long.saturating_add(item.as_str().map_or(0, str::len).max(64)).saturating_add(between.len());
        if long > MAX_TEXT {
            return Err(refuse("join"));
        }
    }
    Ok(())
}

fn join(state: &State, items: &Value, between: Option<StringInput<'_>>) -> Result<Value> {
    if matches!(items.kind(), ValueKind::Seq | ValueKind::Iterable) {
        joined(items, between.as_ref().map_or("", |b| b.as_str()))?;
    }
    filters::join(state, items, between)
}

fn batch(state: &State, items: Value, count: usize, fill: Option<Value>) -> Result<Value> {
    narrow("batch", count)?;
    filters::batch(state, items, count, fill)
}

fn slice(state: &State, items: Value, count: usize, fill: Option<Value>) -> Result<Value> {
    narrow("slice", count)?;
    filters::slice(state, items, count, fill)
}

/// Python's methods of texts, lists and maps.
fn method(state: &State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value> {
    let text = |i: usize| arguments.get(i).and_then(Value::as_str).unwrap_or_default();
    if let Some(this) = value.as_str() {
        match name {
            // what is nowhere and everywhere is searched for ever there
            "count" if arguments.len() == 1 && text(0).is_empty() => return Ok(Value::from(this.chars().count() + 1)),
            "replace" if arguments.len() >= 2 => replaced(this, text(0), text(1))?,
            "join" if arguments.len() == 1 => joined(&arguments[0], this)?,
            "format" => fields(this)?,
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String> {
        let mut jinja = Environment::new();
        install(&mut jinja);
        jinja.render_str(template, ())
    }

    #[test]
    fn calls_do_what_they_did_within_their_bounds() {
        for (template, text) in [
            ("{{ 'a\nb' | indent }}", "a\n    b"),
            ("{{ 'a\nb' | indent(width=2, first=true) }}", "  a\n  b"),
            ("{{ '%03d' | format(7) }}", "007"),
            ("{{ 'aXbX' | replace('X', '--') }} {{ 'aXb'.replace('X', '') }}", "a--b-- ab"),
            ("{{ [1, 'b'] | join(', ') }} {{ ', '.join(['a', 'b']) }}", "1, b a, b"),
            ("{{ 'banana'.count('an') }} {{ 'abc'.count('') }}", "2 4"),
            ("{{ '{:>4}'.format('x') }}", "   x"),
            ("{{ [1, 2, 3] | batch(2) | list }}", "[[1, 2], [3]]"),
            ("{{ [1, 2, 3] | slice(2) | list }}", "[[1, 2], [3]]"),
        ] {
            assert_eq!(render(template).unwrap(), text, "{template}");
        }
        for template in [
            "{{ 'a' | indent(10 ** 18) }}",
            "{{ 'a' | indent(width=10 ** 18) }}",
            "{{ '%99999999d' | format(1) }}",
            "{{ '%*d' | format(99999999, 1) }}",
            "{{ '{:99999999}'.format(1) }}",
            "{{ ('x' * 9999999) | replace('x', 'y' * 9999999) }}",
            "{{ ('x' * 9999999).replace('x', 'y' * 9999999) }}",
            "{{ ('x' * 9999999).replace('', 'y' * 9999999) }}",
            "{{ ([''] * 10 ** 9) | join }}",
            "{{ ('x' * 9999999).join(range(1000)) }}",
            "{{ [1] | batch(10 ** 18) | list }}",
            "{{ [1] | slice(10 ** 18) | list }}",
            "{{ ['x' * 10000] * 10 ** 9 }}",
        ] {
            let e = render(template).unwrap_err().to_string();
            assert!(e.contains("that no chat needs"), "{template}: {e}");
        }
    }
}
