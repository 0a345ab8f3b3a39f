//! Pictures of results as SVG, readable on light and on dark pages: ink and paper change with the
//! reader's colour scheme.

use std::fmt::Display;

use plotters::coord::ranged1d::ValueFormatter;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result};
use crate::eval::long;
use crate::eval::passkey::Row;

mod dots;

pub use dots::dots;

const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
const GRID: RGBColor = RGBColor(0xd0, 0xd7, 0xde);
/// What the three become on a dark page.
const DARK: [(RGBColor, &str); 3] = [(INK, "#E6EDF3"), (PAPER, "#0D1117"), (GRID, "#30363D")];

/// Colours of lines: apart from each other for most kinds of colour blindness, and from both papers.
const LINES: [RGBColor; 7] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xb0, 0x8a, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x8c, 0x6b, 0xb1),
];
/// Dash and gap in pixels of the second and the third round of colours.
const DASHES: [Option<(i32, i32)>; 3] = [None, Some((8, 4)), Some((3, 4))];

/// Pictures of curves and dots: as wide as a phone's screen can show without letters too small to read.
const WIDTH: i32 = 600;
/// Height of their axes, below title and legend.
const HEIGHT: i32 = 360;
/// Their letters.
const LETTERS: i32 = 15;

/// Points of the map viridis, from 0 to 1.
const VIRIDIS: [[f64; 3]; 5] =
    [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];

/// A curve. Its colour and dashes are those of its place among the curves, so that one name can look the same in
/// several pictures: a curve without points takes up its place and is not drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Depth × length picture of exact match: one field for each row, with its rate and n.
///
/// # Errors
/// No rows.
pub fn heat(title: &str, rows: &[Row]) -> Result<String> {
    let mut lengths: Vec<usize> = rows.iter().map(|r| r.length).collect();
    let mut depths: Vec<f64> = rows.iter().map(|r| r.depth).collect();
    lengths.sort_unstable();
    lengths.dedup();
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    let fields = rows.iter().map(|row| Field {
        column: lengths.iter().position(|l| *l == row.length).unwrap_or(0),
        line: depths.iter().position(|d| *d == row.depth).unwrap_or(0),
        value: row.exact,
        note: Some(format!("n = {}", row.n)),
    });
    let columns: Vec<String> = lengths.iter().map(|l| thousands(*l)).collect();
    let lines: Vec<String> = depths.iter().map(f64::to_string).collect();
    grid(title, ("length in tokens", &columns), ("depth", &lines), &fields.collect::<Vec<_>>())
}

/// Task × length picture of what was answered, with n.
///
/// # Errors
/// No rows.
pub fn tasks(title: &str, rows: &[long::Row]) -> Result<String> {
    let mut lengths: Vec<usize> = rows.iter().map(|r| r.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let mut names: Vec<String> = Vec::new();
    for r in rows {
        if !names.contains(&r.task) {
            names.push(r.task.clone());
        }
    }
    let fields = rows.iter().map(|row| Field {
        column: lengths.iter().position(|l| *l == row.length).unwrap_or(0),
        line: names.iter().position(|n| *n == row.task).unwrap_or(0),
        value: row.exact,
        note: Some(format!("n = {}", row.n)),
    });
    let columns: Vec<String> = lengths.iter().map(|l| thousands(*l)).collect();
    grid(title, ("length in tokens", &columns), ("task", &names), &fields.collect::<Vec<_>>())
}

/// Head × layer picture of numbers in [0, 1], such as gates or write rates: `rows` are a layer's
/// index and its heads' values.
///
/// # Errors
/// No values.
pub fn heads(title: &str, rows: &[(usize, Vec<f64>)]) -> Result<String> {
    let columns = (0..rows.iter().map(|r| r.1.len()).max().unwrap_or(0)).map(|h| h.to_string());
    let lines: Vec<String> = rows.iter().map(|r| r.0.to_string()).collect();
    let fields = rows.iter().enumerate().flat_map(|(line, (_, heads))| {
        heads.iter().enumerate().map(move |(column, value)| Field { column, line, value: *value, note: None })
    });
    grid(title, ("head", &columns.collect::<Vec<_>>()), ("layer", &lines), &fields.collect::<Vec<_>>())
}

/// One field of a [`grid`]: its place, its number in [0, 1], and what stands below it.
struct Field {
    column: usize,
    line: usize,
    value: f64,
    note: Option<String>,
}

/// Coloured fields with their numbers; an axis is its name and the names of its places.
fn grid(title: &str, x: (&str, &[String]), y: (&str, &[String]), fields: &[Field]) -> Result<String> {
    if fields.is_empty() {
        return Err(nothing("no rows"));
    }
    // lengths and counts need more room than heads
    let narrow = fields.iter().all(|f| f.note.is_none());
    let field = if narrow { (56, 40) } else { (92, 46) };
    // names of tasks are longer than numbers
    let longest = y.1.iter().map(String::len).max().unwrap_or(0) as i32;
    let origin = ((28 + 7 * longest).max(76), 64);
    let right = origin.0 + field.0 * x.1.len() as i32;
    let bottom = origin.1 + field.1 * y.1.len() as i32;
    let width = (right + 24).max(title.len() as i32 * 9 + 24);
    draw((width as u32, bottom as u32 + 58), |area| {
        let middle = Pos::new(HPos::Center, VPos::Center);
        let write = |text: &str, at: (i32, i32), size: i32, colour: RGBColor, pos: Pos| {
            let style = ("sans-serif", size).into_font().color(&colour).pos(pos);
            area.draw(&Text::new(text.to_owned(), at, style))
        };
        write(title, (12, 14), 17, INK, Pos::new(HPos::Left, VPos::Top))?;
        write(y.0, (12, origin.1 - 16), 13, INK, Pos::new(HPos::Left, VPos::Center))?;
        write(x.0, ((origin.0 + right) / 2, bottom + 38), 13, INK, middle)?;
        for (i, name) in x.1.iter().enumerate() {
            write(name, (origin.0 + field.0 * i as i32 + field.0 / 2, bottom + 16), 13, INK, middle)?;
        }
        for (i, name) in y.1.iter().enumerate() {
            let at = (origin.0 - 12, origin.1 + field.1 * i as i32 + field.1 / 2);
            write(name, at, 13, INK, Pos::new(HPos::Right, VPos::Center))?;
        }
        for f in fields {
            let (left, top) = (origin.0 + field.0 * f.column as i32, origin.1 + field.1 * f.line as i32);
            let (colour, ink) = viridis(f.value);
            let corners = [(left + 1, top + 1), (left + field.0 - 1, top + field.1 - 1)];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
            let centre = left + field.0 / 2;
            let line = top + if f.note.is_some() { 16 } else { field.1 / 2 };
            write(&format!("{:.3}", f.value), (centre, line), 15, ink, middle)?;
            if let Some(note) = &f.note {
                write(note, (centre, top + 33), 11, ink, middle)?;
            }
        }
        Ok(())
    })
}

/// Curves over one axis, which is logarithmic if `log` is set (for lengths: powers of two).
///
/// # Errors
/// No finite point to draw; a value of x that is not above 0 on a logarithmic axis.
pub fn lines(title: &str, x: &str, y: &str, log: bool, series: &[Series]) -> Result<String> {
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points = || series.iter().flat_map(|s| s.points.iter().filter(finite));
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (left, right) = range(&mut points().map(|p| p.0));
    let (low, high) = range(&mut points().map(|p| p.1));
    if left > right {
        return Err(nothing("no finite point"));
    }
    if log && left <= 0.0 {
        return Err(nothing("a logarithmic axis needs values above 0"));
    }
    // A single value still needs some axis around it; curves need some air.
    let air = if high > low { 0.05 * (high - low) } else { 0.5 * high.abs().max(1.0) };
    let (low, high) = (low - air, high + air);
    let right = if right > left { right } else { left + left.abs().max(1.0) };
    let legend = legend(series);
    let head = legend.last().map_or(38, |entry| entry.at.1 + 14);
    draw((WIDTH as u32, (head + HEIGHT) as u32), |area| {
        area.draw(&Text::new(title.to_owned(), (14, 22), font(17)))?;
        for entry in &legend {
            let (x, y) = entry.at;
            let (colour, dash) = style(entry.place);
            let points = [(x, y), (x + 24, y)];
            match dash {
                None => area.draw(&PathElement::new(points, colour.stroke_width(3)))?,
                Some((dash, gap)) => {
                    area.draw(&DashedPathElement::new(points, dash, gap, colour.stroke_width(3)))?;
                }
            }
            area.draw(&Text::new(entry.name.to_owned(), (x + 30, y), font(LETTERS)))?;
        }
        let (_, body) = area.split_vertically(head);
        let mut chart = ChartBuilder::on(&body);
        chart.margin(8).margin_right(34).x_label_area_size(46).y_label_area_size(64);
        let axes = Axes { x, y, digits: [digits(right - left), digits(high - low)] };
        if log {
            curves(chart.build_cartesian_2d((left..right).log_scale().base(2.0), low..high)?, axes, series)
        } else {
            curves(chart.build_cartesian_2d(left..right, low..high)?, axes, series)
        }
    })
}

/// One name of a legend: where it stands, and its place among the curves.
struct Entry<'a> {
    name: &'a str,
    place: usize,
    at: (i32, i32),
}

/// The names of curves that have points, in as many lines as they need; nothing for a single place.
fn legend(series: &[Series]) -> Vec<Entry<'_>> {
    let mut at = (14, 50);
    let named = series.iter().enumerate().filter(|(_, s)| series.len() > 1 && !s.points.is_empty());
    named
        .map(|(place, s)| {
            let width = 46 + letters(&s.name);
            if at.0 > 14 && at.0 + width > WIDTH {
                at = (14, at.1 + 20);
            }
            let entry = Entry { name: &s.name, place, at };
            at.0 += width;
            entry
        })
        .collect()
}

/// About how wide a text is in [`LETTERS`].
fn letters(text: &str) -> i32 {
    (text.chars().count() as f64 * 7.3).ceil() as i32
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center))
}

/// Colour of the curve at a place, and its dashes.
fn style(place: usize) -> (RGBColor, Option<(i32, i32)>) {
    (LINES[place % LINES.len()], DASHES[place / LINES.len() % DASHES.len()])
}

/// What stands at two axes: their names and the decimal places of their numbers.
#[derive(Clone, Copy)]
struct Axes<'a> {
    x: &'a str,
    y: &'a str,
    digits: [usize; 2],
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn curves<'a, X>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    axes: Axes,
    series: &[Series],
) -> Drawn<'a>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    mesh(&mut chart, axes, &|v| short(*v, axes.digits[0]))?;
    for (place, s) in series.iter().enumerate() {
        let (colour, dash) = style(place);
        let points: Vec<(f64, f64)> = s.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
        if points.len() <= 40 {
            chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled())))?;
        }
        let stroke = colour.stroke_width(2);
        match dash {
            None => chart.draw_series(LineSeries::new(points, stroke)).map(drop)?,
            Some((dash, gap)) => chart.draw_series(DashedLineSeries::new(points, dash, gap, stroke)).map(drop)?,
        }
    }
    Ok(())
}

/// Axes with their names, and lines behind the picture.
fn mesh<'a, X>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, plotters::coord::types::RangedCoordf64>>,
    axes: Axes,
    label: &dyn Fn(&f64) -> String,
) -> Drawn<'a>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let font = ("sans-serif", LETTERS).into_font().color(&INK);
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .label_style(font.clone())
        .axis_desc_style(font)
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_labels(9)
        .x_label_formatter(&label)
        .y_label_formatter(&|v| short(*v, axes.digits[1]))
        .draw()
}

/// Draws on paper and makes ink and paper follow the reader's colour scheme.
fn draw(size: (u32, u32), picture: impl for<'a> FnOnce(&Area<'a>) -> Drawn<'a>) -> Result<String> {
    let mut svg = String::new();
    let failed = |e: &dyn Display| Error::Input(format!("picture: cannot be drawn: {e}"));
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER).map_err(|e| failed(&e))?;
        picture(&area).map_err(|e| failed(&e))?;
        area.present().map_err(|e| failed(&e))?;
    }
    let rules = DARK.iter().map(|(light, dark)| {
        let light = format!("#{:02X}{:02X}{:02X}", light.0, light.1, light.2);
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
    });
    let style = format!("<style>@media (prefers-color-scheme: dark){{{}}}</style>\n", rules.collect::<String>());
    let body = svg.find("<svg").and_then(|tag| Some(tag + svg[tag..].find('>')? + 1)).unwrap_or(0);
    svg.insert_str(body, &format!("\n{style}"));
    Ok(svg)
}

fn nothing(why: &str) -> Error {
    Error::Input(format!("picture: nothing to draw: {why}"))
}

/// The colour of a value of 0 to 1, and of text on it.
fn viridis(value: f64) -> (RGBColor, RGBColor) {
    let x = value.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let i = (x as usize).min(VIRIDIS.len() - 2);
    let mix = |c: usize| (VIRIDIS[i][c] + (x - i as f64) * (VIRIDIS[i + 1][c] - VIRIDIS[i][c])).round() as u8;
    let colour = RGBColor(mix(0), mix(1), mix(2));
    // Text on a field must not change with the colour scheme: almost black, almost white.
    (colour, if value < 0.6 { RGBColor(0xfe, 0xfe, 0xfe) } else { RGBColor(0x01, 0x01, 0x01) })
}

/// A number with commas: 131,072.
pub(crate) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

/// Decimal places that tell the numbers of an axis apart.
fn digits(range: f64) -> usize {
    (-(range / 20.0).log10()).ceil().clamp(0.0, 9.0) as usize
}

/// A number on an axis.
fn short(v: f64, digits: usize) -> String {
    match v {
        v if v.abs() >= 1e6 => format!("{}M", trim(v / 1e6, 3)),
        v if v >= 1e3 && v.fract() == 0.0 => thousands(v as usize),
        _ => trim(v, digits),
    }
}

fn trim(v: f64, digits: usize) -> String {
    let text = format!("{v:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(length: usize, depth: f64, exact: f64) -> Row {
        let (interval, knock_out) = ([0.0, 1.0], false);
        Row { length, depth, n: 20, exact, digit: exact, knock_out, interval, invented: None, said: None, stale: None }
    }

    #[test]
    fn a_heat_picture_shows_every_field() {
        let rows = [row(4096, 0.0, 1.0), row(4096, 0.5, 0.25), row(131_072, 0.0, 0.0), row(131_072, 0.5, 0.995)];
        let svg = heat("Recall & more", &rows).unwrap();
        for part in ["4,096", "131,072", "0.250", "0.995", "n = 20", "Recall &amp; more", "prefers-color-scheme: dark"]
        {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!(svg.matches("<rect").count(), 5);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(heat("", &[]).is_err());
    }

    #[test]
    fn a_picture_of_tasks_names_them() {
        let row = |task: &str, length| long::Row {
            task: task.into(),
            length,
            n: 40,
            exact: 0.5,
            interval: [0.3, 0.7],
            tokens: 1,
            seconds: 1.0,
            examples: Vec::new(),
        };
        let svg = tasks("RULER", &[row("niah_single_1", 0), row("niah_single_1", 4096), row("qa1", 4096)]).unwrap();
        for part in ["niah_single_1", "qa1", "4,096", "n = 40"] {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!((svg.matches("<rect").count(), svg.matches("niah_single_1").count()), (4, 1));
        assert!(tasks("", &[]).is_err());
    }

    #[test]
    fn curves_have_names_and_survive_odd_values() {
        let series = |name: &str, points: &[(f64, f64)]| Series { name: name.into(), points: points.to_vec() };
        let two = [series("one", &[(1.0, 0.5), (1024.0, 1.0)]), series("two", &[(1.0, f64::NAN), (64.0, 0.0)])];
        for log in [false, true] {
            let svg = lines("Capacity", "keys", "exact", log, &two).unwrap();
            for part in ["Capacity", "keys", "exact", "one", "two", "polyline"] {
                assert!(svg.contains(part), "{part}");
            }
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
        assert!(lines("t", "x", "y", false, &[series("dot", &[(0.0, 0.0)])]).is_ok());
        assert!(lines("t", "x", "y", true, &[series("dot", &[(0.0, 0.0)])]).is_err());
        assert!(lines("t", "x", "y", false, &[]).is_err());
    }

    #[test]
    fn numbers_of_an_axis_differ() {
        let of = |v, range| short(v, digits(range));
        assert_eq!((of(1_048_576.0, 1e6), of(131_072.0, 1e5)), ("1.049M".into(), "131,072".into()));
        assert_eq!((of(0.25, 1.0), of(4.0, 0.5), of(100.0, 500.0)), ("0.25".into(), "4".into(), "100".into()));
        assert_eq!((of(0.7855, 0.005), of(0.7850, 0.005)), ("0.7855".into(), "0.785".into()));
    }

    #[test]
    fn many_curves_are_told_apart() {
        let names: Vec<String> = (0..17).map(|i| format!("a-run-of-some-length-{i}")).collect();
        let mut series: Vec<Series> =
            names.iter().map(|name| Series { name: name.clone(), points: vec![(0.0, 0.0), (1.0, 1.0)] }).collect();
        let looks: std::collections::BTreeSet<String> = (0..17).map(|i| format!("{:?}", style(i))).collect();
        assert_eq!(looks.len(), 17);
        series[3].points.clear();
        let entries = legend(&series);
        assert_eq!((entries.len(), entries[3].place, entries[3].at.1), (16, 4, 70));
        assert!(entries.iter().all(|e| e.at.0 + 30 + letters(e.name) <= WIDTH));
        let svg = lines("t", "x", "y", false, &series).unwrap();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(svg.contains(&format!("{name}\n")), i != 3, "{name}");
        }
    }

    #[test]
    fn text_stands_out_from_its_field() {
        let light = |c: RGBColor| 0.299 * f64::from(c.0) + 0.587 * f64::from(c.1) + 0.114 * f64::from(c.2);
        for i in 0..=20 {
            let (field, ink) = viridis(f64::from(i) / 20.0);
            assert!((light(field) - light(ink)).abs() > 90.0, "{i}: {field:?} {ink:?}");
        }
    }
}
