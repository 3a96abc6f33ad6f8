//! A roofline: how many operations a second each case reached, over how many it does for each byte that it must move, below
//! the roof that the device's measured ceilings make. Every case is a numbered mark; the key below has its name and figures.

use super::axis::{Axis, label};
use super::canvas::{Anchor, Canvas, Frame, GREY, PALE, width};
use super::place::Places;
use super::series::{operation, ours};
use super::table::time;
use anyhow::Result;
use molora_check::Op;
use molora_check::record::{Ceiling, Line, Record};
use plotters::style::BLACK;

const WIDTH: f64 = 1240.0;
const PLOT: Frame = Frame { left: 84.0, top: 104.0, right: 1216.0, bottom: 624.0 };
/// Top of the key.
const KEY: f64 = PLOT.bottom + 66.0;
const ROW: f64 = 15.0;
const SMALL: f64 = 10.0;

/// A case with its place on the picture.
struct Point<'a> {
    number: usize,
    /// Its operation's mark.
    mark: usize,
    line: &'a Line,
    /// Operations a byte and 10^9 operations a second; none for a case that only moves bytes.
    values: Option<(f64, f64)>,
}

impl<'a> Point<'a> {
    fn new(number: usize, mark: usize, line: &'a Line) -> Self {
        let work = line.work;
        let values = (work.flops / work.bytes, work.flops / line.latency_us_median / 1e3);
        let is_drawn = [values.0, values.1].iter().all(|value| *value > 0.0 && value.is_finite());
        Self { number, mark, line, values: is_drawn.then_some(values) }
    }
}

/// The SVG of one device.
pub fn roofline(record: &Record, device: &str) -> Result<String> {
    let points = points(record, device);
    let roofs: Vec<&Ceiling> = record.ceilings.iter().filter(|ceiling| ceiling.device == device).collect();
    let rows = rows(&points);
    let columns = columns(&points);
    let height = KEY + rows.len().div_ceil(columns) as f64 * ROW + 2.0 * ROW;
    let mut svg = String::new();
    let canvas = Canvas::new(&mut svg, WIDTH, height)?;
    heading(&canvas, record, device, &points)?;
    let (x, y) = axes(&points, &roofs);
    grid(&canvas, &x, &y)?;
    let mut places = Places::new(PLOT);
    draw_roofs(&canvas, &roofs, &x, &y, &mut places)?;
    draw_points(&canvas, &points, &x, &y, &mut places)?;
    key(&canvas, &rows, columns)?;
    canvas.finish()?;
    Ok(svg)
}

/// Our lines on a device, by operation in the order in which data flows: each has the same mark on every picture. Operations
/// that are not of the library's rooms come last.
fn points<'a>(record: &'a Record, device: &str) -> Vec<Point<'a>> {
    let lines: Vec<&Line> = ours(record).filter(|line| line.device == device).collect();
    let mut names: Vec<&str> = Op::ALL.iter().map(|op| op.name()).collect();
    for line in &lines {
        if !names.contains(&operation(&line.case)) {
            names.push(operation(&line.case));
        }
    }
    let mark = |line: &Line| names.iter().position(|name| *name == operation(&line.case)).unwrap_or_default();
    let mut marked: Vec<(usize, &Line)> = lines.into_iter().map(|line| (mark(line), line)).collect();
    marked.sort_by_key(|(mark, _)| *mark);
    marked.into_iter().enumerate().map(|(i, (mark, line))| Point::new(i + 1, mark, line)).collect()
}

/// A text no wider than the picture.
pub fn fitted(canvas: &Canvas<'_>, text: &str, size: f64, at: (f64, f64), room: f64) -> Result<()> {
    let size = size * (room / width(text, size)).min(1.0);
    canvas.text(text, size, BLACK, at, Anchor::Left)
}

fn heading(canvas: &Canvas<'_>, record: &Record, device: &str, points: &[Point<'_>]) -> Result<()> {
    let room = WIDTH - 48.0;
    let machine = &record.machine;
    let title = format!("Roofline of {device}, {}", record.date);
    fitted(canvas, &title, 16.0, (24.0, 24.0), room)?;
    let about = format!(
        "{}: {}, {} threads, {}; molora {}. Each mark is a case, numbered as in the key below.",
        machine.name, machine.processor, machine.threads, machine.system, record.version
    );
    fitted(canvas, &about, 11.0, (24.0, 50.0), room)?;
    let mut x = PLOT.left;
    for group in points.chunk_by(|a, b| a.mark == b.mark) {
        let name = operation(&group[0].line.case);
        canvas.mark(group[0].mark, (x + 6.0, 82.0))?;
        canvas.text(name, 11.0, BLACK, (x + 18.0, 82.0), Anchor::Left)?;
        x += 40.0 + width(name, 11.0);
    }
    Ok(())
}

/// Axes that hold every point and the bend of every roof.
fn axes(points: &[Point<'_>], roofs: &[&Ceiling]) -> (Axis, Axis) {
    let drawn = || points.iter().filter_map(|point| point.values);
    let bends = || roofs.iter().map(|roof| (roof.gflop_per_s / roof.gb_per_s, roof.gflop_per_s));
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold([f64::INFINITY, 0.0_f64], |[low, high], v| [low.min(v), high.max(v)])
    };
    let with_room = |[low, high]: [f64; 2], below: f64, above: f64| match low <= high {
        true => [low / below, high * above],
        false => [0.1, 10.0],
    };
    let x = range(&mut drawn().chain(bends()).map(|(x, _)| x));
    let y = range(&mut drawn().map(|(_, y)| y).chain(roofs.iter().map(|roof| roof.gflop_per_s)));
    (
        Axis::logarithmic(with_room(x, 1.8, 2.5), [PLOT.left, PLOT.right]),
        Axis::logarithmic(with_room(y, 2.0, 1.8), [PLOT.bottom, PLOT.top]),
    )
}

fn grid(canvas: &Canvas<'_>, x: &Axis, y: &Axis) -> Result<()> {
    for value in x.ticks() {
        let at = x.at(value);
        canvas.line(&[(at, PLOT.top), (at, PLOT.bottom)], PALE, 1)?;
        canvas.text(&label(value), 11.0, GREY, (at, PLOT.bottom + 14.0), Anchor::Middle)?;
    }
    for value in y.ticks() {
        let at = y.at(value);
        canvas.line(&[(PLOT.left, at), (PLOT.right, at)], PALE, 1)?;
        canvas.text(&label(value), 11.0, GREY, (PLOT.left - 8.0, at), Anchor::Right)?;
    }
    let Frame { left, top, right, bottom } = PLOT;
    canvas.line(&[(left, top), (left, bottom), (right, bottom)], GREY, 1)?;
    let middle = ((left + right) / 2.0, (top + bottom) / 2.0);
    let x_title = "operations for each byte that must be read or written (FLOP / byte)";
    canvas.text(x_title, 12.0, BLACK, (middle.0, bottom + 38.0), Anchor::Middle)?;
    canvas.upright("operations a second (GFLOP/s)", 12.0, BLACK, (22.0, middle.1))
}

/// One roof for all element types that share it within 2 %, with its rates beside it.
fn draw_roofs(
    canvas: &Canvas<'_>,
    roofs: &[&Ceiling],
    x: &Axis,
    y: &Axis,
    places: &mut Places,
) -> Result<()> {
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.02;
    let mut groups: Vec<(String, &Ceiling)> = Vec::new();
    for roof in roofs {
        let same = |(_, other): &&mut (String, &Ceiling)| {
            near(roof.gflop_per_s, other.gflop_per_s) && near(roof.gb_per_s, other.gb_per_s)
        };
        match groups.iter_mut().find(same) {
            Some((names, _)) => *names = format!("{names}, {}", roof.element),
            None => groups.push((roof.element.clone(), roof)),
        }
    }
    let ([x_low, x_high], [y_low, _]) = (x.ends(), y.ends());
    let mut slopes: Vec<f64> = Vec::new();
    for (names, roof) in &groups {
        let at = |intensity: f64| (x.at(intensity), y.at((roof.gb_per_s * intensity).min(roof.gflop_per_s)));
        // Where the slope enters from below.
        let start = x_low.max(y_low / roof.gb_per_s);
        let bend = (roof.gflop_per_s / roof.gb_per_s).max(start);
        let line = [at(start), at(bend), at(x_high)];
        canvas.line(&line, BLACK, 2)?;
        places.take_line(line[0], line[1]);
        places.take_line(line[1], line[2]);
        let text = format!("{names}: {:.0} GFLOP/s", roof.gflop_per_s);
        roof_label(canvas, &text, (PLOT.right - 6.0, line[2].1 - 11.0), places)?;
        if slopes.iter().all(|&slope| !near(slope, roof.gb_per_s)) {
            let (x, y) = at((start * bend).sqrt());
            roof_label(canvas, &format!("{:.1} GB/s", roof.gb_per_s), (x - 10.0, y - 10.0), places)?;
            slopes.push(roof.gb_per_s);
        }
    }
    if roofs.is_empty() {
        roof_label(canvas, "no ceilings were measured", (PLOT.right - 6.0, PLOT.top + 12.0), places)?;
    }
    Ok(())
}

/// A text that ends at the point, or above it where something lies there.
fn roof_label(
    canvas: &Canvas<'_>,
    text: &str,
    (right, mut y): (f64, f64),
    places: &mut Places,
) -> Result<()> {
    let frame = |y: f64| Frame::of_text(text, 11.0, (right - width(text, 11.0), y));
    while y > PLOT.top + 8.0 && places.is_taken(&frame(y)) {
        y -= 4.0;
    }
    places.take(frame(y));
    canvas.text(text, 11.0, BLACK, (right, y), Anchor::Right)
}

fn draw_points(
    canvas: &Canvas<'_>,
    points: &[Point<'_>],
    x: &Axis,
    y: &Axis,
    places: &mut Places,
) -> Result<()> {
    let drawn: Vec<(&Point<'_>, (f64, f64))> = points
        .iter()
        .filter_map(|point| point.values.map(|values| (point, (x.at(values.0), y.at(values.1)))))
        .collect();
    for (_, at) in &drawn {
        places.take(Frame::around(*at, 5.5));
    }
    let mut texts = Vec::new();
    for (point, at) in &drawn {
        let text = point.number.to_string();
        let Some(placed) = places.find(*at, [width(&text, SMALL), SMALL]) else { continue };
        if let Some(end) = placed.leader {
            canvas.line(&[*at, end], GREY, 1)?;
        }
        texts.push((text, placed.at));
    }
    for (point, at) in &drawn {
        canvas.mark(point.mark, *at)?;
    }
    for (text, at) in texts {
        canvas.text(&text, SMALL, BLACK, at, Anchor::Left)?;
    }
    Ok(())
}

/// Stands for the share of a case that has no mark.
const NOT_DRAWN: &str = "-";

/// A row of the key.
enum Row<'a> {
    Operation { mark: usize, name: &'a str },
    Case { number: usize, case: &'a str, figures: [String; 2] },
    Blank,
}

fn rows<'a>(points: &[Point<'a>]) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for group in points.chunk_by(|a, b| a.mark == b.mark) {
        rows.extend((!rows.is_empty()).then_some(Row::Blank));
        rows.push(Row::Operation { mark: group[0].mark, name: operation(&group[0].line.case) });
        for point in group {
            let share = match (point.values, point.line.limit_share()) {
                (None, _) => NOT_DRAWN.into(),
                (_, Some(share)) => format!("{:.0} %", 100.0 * share),
                (_, None) => String::new(),
            };
            let figures = [format!("{} us", time(point.line.latency_us_median)), share];
            rows.push(Row::Case { number: point.number, case: &point.line.case, figures });
        }
    }
    rows
}

/// As many columns of the key as have room for its longest case with number and figures.
fn columns(points: &[Point<'_>]) -> usize {
    let longest = points.iter().map(|point| width(&point.line.case, SMALL)).fold(0.0, f64::max);
    (((WIDTH - 24.0) / (longest + 172.0)) as usize).clamp(1, 3)
}

fn key(canvas: &Canvas<'_>, rows: &[Row<'_>], columns: usize) -> Result<()> {
    let (per_column, column_width) = (rows.len().div_ceil(columns), (WIDTH - 24.0) / columns as f64);
    for (i, row) in rows.iter().enumerate() {
        let x = 24.0 + (i / per_column) as f64 * column_width;
        let y = KEY + (i % per_column) as f64 * ROW;
        match row {
            Row::Operation { mark, name } => {
                canvas.mark(*mark, (x + 18.0, y))?;
                canvas.text(name, 11.0, BLACK, (x + 32.0, y), Anchor::Left)?;
            }
            Row::Case { number, case, figures } => {
                canvas.text(&number.to_string(), SMALL, BLACK, (x + 24.0, y), Anchor::Right)?;
                canvas.text(case, SMALL, BLACK, (x + 32.0, y), Anchor::Left)?;
                let [us, share] = figures;
                canvas.text(us, SMALL, BLACK, (x + column_width - 70.0, y), Anchor::Right)?;
                canvas.text(share, SMALL, BLACK, (x + column_width - 18.0, y), Anchor::Right)?;
            }
            Row::Blank => {}
        }
    }
    let end = (24.0, KEY + per_column as f64 * ROW + 4.0);
    let is_missing =
        |row: &Row<'_>| matches!(row, Row::Case { figures: [_, share], .. } if share == NOT_DRAWN);
    let missing = if rows.iter().any(is_missing) { "; -: moves bytes alone, so it is not drawn" } else { "" };
    let text = format!("%: the least time by the ceilings, over the median{missing}");
    canvas.text(&text, SMALL, GREY, end, Anchor::Left)
}
