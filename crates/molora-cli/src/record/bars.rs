//! Bars of what others took beside us on the same case.

use super::axis::{Axis, label};
use super::canvas::{Anchor, Canvas, Frame, GREY, PALE, colour, width};
use super::roofline::fitted;
use super::series::{Other, beside, others, ours};
use anyhow::Result;
use molora_check::record::{Line, Record};
use molora_check::report::OURS;
use plotters::style::BLACK;

/// Above this, lengths in proportion would hide what is small: the axis is logarithmic.
const MOST_PLAIN: f64 = 12.0;
/// Cases go on in another column beyond this height.
const COLUMN: f64 = 1300.0;
/// The axis' length, with room before it for the names, as they are, and for the figures behind it.
const LENGTH: f64 = 400.0;
const FIGURES: f64 = 150.0;
/// For the heading.
const LEAST_WIDTH: f64 = 720.0;
const BAR: f64 = 15.0;
const TITLE: f64 = 20.0;
const GAP: f64 = 10.0;
const TOP: f64 = 112.0;
const MARGIN: f64 = 24.0;
const SMALL: f64 = 10.0;

/// What a bar counts in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Unit {
    /// Molora's own time
    #[default]
    Molora,
    /// The least time that the measured ceilings allow
    Floor,
}

struct Bar {
    series: String,
    value: f64,
    range: Option<[f64; 2]>,
}

/// A case and its bars, ours first.
struct Group<'a> {
    case: &'a str,
    bars: Vec<Bar>,
}

impl Group<'_> {
    fn height(&self) -> f64 {
        TITLE + self.bars.len() as f64 * BAR + GAP
    }
}

/// The SVG of one device; none where no case has another series (in floors: none with a floor).
pub fn bars(record: &Record, device: &str, unit: Unit) -> Result<Option<String>> {
    let lines = ours(record).filter(|line| line.device == device);
    let groups: Vec<Group<'_>> = lines.filter_map(|line| group(record, line, unit)).collect();
    if groups.is_empty() {
        return Ok(None);
    }
    let mut series: Vec<&str> = vec![OURS];
    for bar in groups.iter().flat_map(|group| &group.bars) {
        if !series.contains(&bar.series.as_str()) {
            series.push(&bar.series);
        }
    }
    let columns = split(&groups);
    let tallest = columns.iter().map(|groups| height(groups)).fold(0.0, f64::max);
    let names = 16.0 + series.iter().map(|name| width(name, SMALL)).fold(0.0, f64::max);
    let column_width = names + LENGTH + FIGURES;
    let picture_width = (columns.len() as f64 * column_width + MARGIN).max(LEAST_WIDTH);
    let legend = legend_rows(&series, picture_width);
    let top = TOP + (legend.len() as f64 - 1.0) * 18.0;
    let mut svg = String::new();
    let canvas = Canvas::new(&mut svg, picture_width, top + tallest + 66.0)?;
    heading(&canvas, record, device, unit, picture_width)?;
    for (row, names) in legend.iter().enumerate() {
        let mut x = MARGIN;
        for name in names {
            let y = 88.0 + row as f64 * 18.0;
            canvas.rectangle(Frame::around((x + 6.0, y), 6.0), shade(&series, name))?;
            canvas.text(name, 11.0, BLACK, (x + 18.0, y), Anchor::Left)?;
            x += 40.0 + width(name, 11.0);
        }
    }
    for (i, groups) in columns.iter().enumerate() {
        let left = MARGIN + i as f64 * column_width;
        let pixels = [left + names, left + names + LENGTH];
        draw(&canvas, groups, &axis(&columns, pixels), (left, top), unit, &|name| shade(&series, name))?;
    }
    canvas.finish()?;
    Ok(Some(svg))
}

fn shade(series: &[&str], name: &str) -> plotters::style::RGBColor {
    colour(series.iter().position(|other| *other == name).unwrap_or(0))
}

fn group<'a>(record: &Record, line: &'a Line, unit: Unit) -> Option<Group<'a>> {
    let us = line.latency_us_median;
    // From molora's own times to the unit.
    let factor = match unit {
        Unit::Molora => 1.0,
        Unit::Floor => us / line.floor?.us(),
    };
    let own = Bar {
        series: OURS.into(),
        value: factor,
        range: Some(line.latency_us_quartiles.map(|quartile| quartile / us * factor)),
    };
    let bar = |other: Other| Bar {
        value: other.ratio * factor,
        range: other.range.map(|range| range.map(|end| end * factor)),
        series: other.series,
    };
    let of_line = |other: &Other| beside(record, line).find(|line| line.series == other.series);
    let in_unit = |other: Other| match (unit, of_line(&other)) {
        // Against the floor a series' own times say more than its ratio to ours.
        (Unit::Floor, Some(own)) => Bar {
            series: other.series,
            value: own.latency_us_median / us * factor,
            range: Some(own.latency_us_quartiles.map(|quartile| quartile / us * factor)),
        },
        _ => bar(other),
    };
    let others: Vec<Bar> = others(record, line).into_iter().map(in_unit).collect();
    let is_drawn = factor.is_finite() && factor > 0.0 && !others.is_empty();
    is_drawn.then(|| Group { case: &line.case, bars: std::iter::once(own).chain(others).collect() })
}

fn height(groups: &[Group<'_>]) -> f64 {
    groups.iter().map(Group::height).sum()
}

/// Columns of about the same height, in the order of the cases.
fn split<'g, 'a>(groups: &'g [Group<'a>]) -> Vec<&'g [Group<'a>]> {
    let columns = (height(groups) / COLUMN).ceil().max(1.0);
    let target = height(groups) / columns;
    let (mut parts, mut first, mut sum) = (Vec::new(), 0, 0.0);
    for (i, group) in groups.iter().enumerate() {
        sum += group.height();
        if sum >= target - 1.0 || i + 1 == groups.len() {
            parts.push(&groups[first..=i]);
            (first, sum) = (i + 1, 0.0);
        }
    }
    parts
}

/// The same axis in every column, so that columns compare.
fn axis(columns: &[&[Group<'_>]], pixels: [f64; 2]) -> Axis {
    let bars = || columns.iter().copied().flatten().flat_map(|group| &group.bars);
    let ends = || bars().flat_map(|bar| [bar.value].into_iter().chain(bar.range.into_iter().flatten()));
    let largest = ends().fold(1.0, f64::max);
    let smallest = ends().filter(|&end| end > 0.0).fold(1.0, f64::min);
    match largest > MOST_PLAIN {
        true => Axis::logarithmic([smallest.min(0.9) * 0.8, largest * 1.05], pixels),
        false => Axis::plain(largest * 1.05, pixels),
    }
}

fn legend_rows<'a>(series: &[&'a str], picture_width: f64) -> Vec<Vec<&'a str>> {
    let (mut rows, mut x) = (vec![Vec::new()], MARGIN);
    for name in series {
        let wide = 40.0 + width(name, 11.0);
        if x + wide > picture_width - MARGIN {
            rows.push(Vec::new());
            x = MARGIN;
        }
        rows.last_mut().expect("there is a row").push(*name);
        x += wide;
    }
    rows
}

fn heading(canvas: &Canvas<'_>, record: &Record, device: &str, unit: Unit, wide: f64) -> Result<()> {
    let room = wide - 2.0 * MARGIN;
    let unit = match unit {
        Unit::Molora => "molora's time",
        Unit::Floor => "the measured floor",
    };
    let title = format!("Times over {unit} on {device}, {}", record.date);
    fitted(canvas, &title, 16.0, (MARGIN, 24.0), room)?;
    let machine = &record.machine;
    let about = format!(
        "{}: {}, {} threads, {}; molora {}",
        machine.name, machine.processor, machine.threads, machine.system, record.version
    );
    fitted(canvas, &about, 11.0, (MARGIN, 46.0), room)?;
    let whiskers =
        "Whiskers: quartiles; of a ratio of alternating calls the median's 95 % interval. Shorter is faster.";
    fitted(canvas, whiskers, 11.0, (MARGIN, 64.0), room)
}

fn draw(
    canvas: &Canvas<'_>,
    groups: &[Group<'_>],
    axis: &Axis,
    (left, top): (f64, f64),
    unit: Unit,
    colour_of: &dyn Fn(&str) -> plotters::style::RGBColor,
) -> Result<()> {
    let bottom = top + height(groups);
    for tick in axis.ticks() {
        canvas.text(&label(tick), 11.0, GREY, (axis.at(tick), bottom + 8.0), Anchor::Middle)?;
    }
    let start = axis.at(axis.ends()[0]);
    let title = match unit {
        Unit::Molora => "time / molora's time",
        Unit::Floor => "time / least time by the ceilings",
    };
    let middle = (start + axis.at(axis.ends()[1])) / 2.0;
    let scale = if axis.is_logarithmic() { ", logarithmic" } else { "" };
    canvas.text(&format!("{title}{scale}"), 12.0, BLACK, (middle, bottom + 32.0), Anchor::Middle)?;
    let mut y = top;
    for group in groups {
        canvas.text(group.case, 11.0, BLACK, (left, y + TITLE / 2.0), Anchor::Left)?;
        y += TITLE;
        // Lines beside the bars alone: they would strike the case's name through.
        let rule = |x: f64| [(x, y - 2.0), (x, y + group.bars.len() as f64 * BAR + 4.0)];
        for tick in axis.ticks() {
            canvas.line(&rule(axis.at(tick)), PALE, 1)?;
        }
        let unit = rule(axis.at(1.0));
        for bar in &group.bars {
            let (middle, end) = (y + BAR / 2.0, axis.at(bar.value));
            canvas.text(&bar.series, SMALL, GREY, (start - 8.0, middle), Anchor::Right)?;
            let frame = Frame { left: start, top: y + 2.0, right: end, bottom: y + BAR - 2.0 };
            canvas.rectangle(frame, colour_of(&bar.series))?;
            // A figure is not struck through by the line either.
            let mut furthest = end.max(axis.at(1.0));
            if let Some([low, high]) = bar.range {
                furthest = furthest.max(axis.at(high));
                canvas.line(&[(axis.at(low), middle), (axis.at(high), middle)], BLACK, 1)?;
                for x in [axis.at(low), axis.at(high)] {
                    canvas.line(&[(x, middle - 3.0), (x, middle + 3.0)], BLACK, 1)?;
                }
            }
            canvas.text(&figure(bar), SMALL, BLACK, (furthest + 8.0, middle), Anchor::Left)?;
            y += BAR;
        }
        // In front of the bars.
        canvas.line(&unit, BLACK, 1)?;
        y += GAP;
    }
    Ok(())
}

fn figure(bar: &Bar) -> String {
    match bar.range {
        Some([low, high]) => format!("{:.2} [{low:.2}, {high:.2}]", bar.value),
        None => format!("{:.2}", bar.value),
    }
}
