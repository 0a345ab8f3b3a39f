//! Named dots over an axis of bytes.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Axes, HEIGHT, LETTERS, Series, WIDTH, digits, draw, font, letters, mesh, nothing, style, trim};
use crate::error::Result;

/// Height of a name.
const LINE: i32 = 17;

/// A name: between which x it stands, and at which height.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    left: i32,
    right: i32,
    y: i32,
}

impl Place {
    fn meets(&self, other: &Place, height: i32) -> bool {
        self.left < other.right && other.left < self.right && (self.y - other.y).abs() < height
    }
}

/// Dots named where they stand, over a logarithmic axis of bytes on which nothing (0 bytes) has a place of its own.
///
/// # Errors
/// No finite point to draw.
pub fn dots(title: &str, x: &str, y: &str, series: &[Series]) -> Result<String> {
    let all: Vec<(usize, &str, (f64, f64))> = series
        .iter()
        .enumerate()
        .flat_map(|(i, s)| s.points.iter().map(move |p| (i, s.name.as_str(), *p)))
        .filter(|(_, _, p)| p.0.is_finite() && p.1.is_finite())
        .collect();
    if all.is_empty() {
        return Err(nothing("no finite point"));
    }
    let axis = Bytes::around(all.iter().map(|p| p.2.0));
    let (low, high) = all.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), p| (l.min(p.2.1), h.max(p.2.1)));
    let air = if high > low { 0.12 * (high - low) } else { 0.5 * high.abs().max(1.0) };
    let (low, high) = (low - air, high + air);
    let head = 38;
    draw((WIDTH as u32, (head + HEIGHT) as u32), |area| {
        area.draw(&Text::new(title.to_owned(), (14, 22), font(17)))?;
        let (_, body) = area.split_vertically(head);
        let mut chart = ChartBuilder::on(&body)
            .margin(8)
            .margin_right(34)
            .x_label_area_size(46)
            .y_label_area_size(64)
            .build_cartesian_2d(axis, low..high)?;
        let axes = Axes { x, y, digits: [0, digits(high - low)] };
        mesh(&mut chart, axes, &|v| Bytes::format(v))?;
        let at: Vec<(i32, i32)> = all.iter().map(|p| chart.backend_coord(&p.2)).collect();
        let names: Vec<(i32, i32, &str)> = at.iter().zip(&all).map(|(at, p)| (at.0, at.1, p.1)).collect();
        let places = places(&names, WIDTH - 10, (head + 8, head + HEIGHT - 62));
        for (((place, name, _), (x, y)), label) in all.iter().zip(&at).zip(&places) {
            let side = if label.left > *x { HPos::Left } else { HPos::Right };
            let edge = if label.left > *x { label.left } else { label.right };
            if (label.y - y).abs() > LINE / 2 {
                area.draw(&PathElement::new([(*x, *y), (edge, label.y)], style(*place).0.stroke_width(1)))?;
            }
            let text = font(LETTERS).pos(Pos::new(side, VPos::Center));
            area.draw(&Text::new((*name).to_owned(), (edge, label.y), text))?;
            area.draw(&Circle::new((*x, *y), 4, style(*place).0.filled()))?;
        }
        Ok(())
    })
}

/// A logarithmic axis on which less than a byte stands two doublings below the least of the others.
struct Bytes {
    /// Logarithms of the least and the most, as whole numbers.
    least: f64,
    most: f64,
}

impl Bytes {
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let logs = values.filter(|v| *v >= 1.0).map(f64::log2);
        let (least, most) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), v| (l.min(v), m.max(v)));
        let (least, most) = if least <= most { (least.floor(), most.ceil()) } else { (0.0, 0.0) };
        Bytes { least, most }
    }
}

impl Ranged for Bytes {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        let log = if *value >= 1.0 { value.log2() } else { self.least - 2.0 };
        // half a doubling of air on the left, one on the right
        let share = (log - self.least + 2.5) / (self.most - self.least + 3.5);
        left + (share * f64::from(right - left)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let step = ((self.most - self.least) / 5.0).ceil().max(1.0);
        let logs = (0..).map(|i| self.least + step * f64::from(i)).take_while(|log| *log <= self.most);
        [0.0].into_iter().chain(logs.map(f64::exp2)).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..self.most.exp2()
    }
}

impl ValueFormatter<f64> for Bytes {
    fn format(value: &f64) -> String {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        if *value < 1.0 {
            return "0".into();
        }
        let unit = ((value.log2() / 10.0) as usize).min(UNITS.len() - 1);
        format!("{} {}", trim(value / 1024f64.powi(unit as i32), 1), UNITS[unit])
    }
}

/// Where the names of dots stand: beside their dot, or as far from that height as other names and dots demand.
fn places(dots: &[(i32, i32, &str)], right: i32, (top, bottom): (i32, i32)) -> Vec<Place> {
    let mut order: Vec<usize> = (0..dots.len()).collect();
    order.sort_by_key(|i| (dots[*i].1, dots[*i].0));
    let around = |i: usize| Place { left: dots[i].0 - 5, right: dots[i].0 + 5, y: dots[i].1 };
    let mut out: Vec<Option<Place>> = vec![None; dots.len()];
    for i in order {
        let (x, y, name) = dots[i];
        let width = letters(name);
        let left = if x + 12 + width <= right { x + 12 } else { x - 12 - width };
        let at = |y| Place { left, right: left + width, y };
        let free = |place: &Place| {
            (top..=bottom).contains(&place.y)
                && out.iter().flatten().all(|other| !place.meets(other, LINE))
                && (0..dots.len()).all(|d| d == i || !place.meets(&around(d), LINE / 2 + 4))
        };
        // downwards first, so that names stand in the order of their dots
        let tries = (y..=bottom).chain((top..y).rev()).map(at);
        out[i] = Some({ tries }.find(free).unwrap_or(at(y)));
    }
    out.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_named_and_nothing_has_a_place() {
        let series = |name: &str, bytes: f64, y: f64| Series { name: name.into(), points: vec![(bytes, y)] };
        let all = [series("none", 0.0, 62.9), series("<some>", 266_240.0, 67.0), series("more", 16_777_216.0, 59.6)];
        let svg = dots("Memory", "context memory", "perplexity", &all).unwrap();
        for part in ["none", "&lt;some&gt;", "more", "256 KiB", "16 MiB", "context memory", "\n0\n"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(dots("t", "x", "y", &all[..1]).is_ok());
        assert!(dots("t", "x", "y", &[series("x", f64::NAN, 1.0)]).is_err());
        let of = |v| Bytes::format(&v);
        assert_eq!((of(512.0), of(16_384.0), of(1_048_576.0)), ("512 B".into(), "16 KiB".into(), "1 MiB".into()));
    }

    #[test]
    fn names_keep_off_each_other_and_other_dots() {
        let near: Vec<(i32, i32, &str)> = (0..9).map(|i| (100 + 2 * (i % 3), 200 + i, "a-name")).collect();
        let places = places(&near, 600, (50, 400));
        for (i, a) in places.iter().enumerate() {
            assert!(places.iter().skip(i + 1).all(|b| !a.meets(b, LINE)), "{places:?}");
            assert!(near.iter().all(|(x, y, _)| !a.meets(&Place { left: x - 4, right: x + 4, y: *y }, LINE / 2)));
        }
        assert!(places.windows(2).all(|p| p[0].y < p[1].y), "{places:?}");
        // at the edge a name stands on the other side
        assert_eq!(super::places(&[(590, 90, "edge")], 600, (50, 400))[0].right, 578);
    }
}
