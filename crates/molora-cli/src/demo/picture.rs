//! A picture of which expert each token took: linears from top to bottom, tokens from left to right.

use super::trace::Trace;
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

const CELL: i32 = 17;
const LEFT: i32 = 96;
const TOP: i32 = 92;
const MARGIN: i32 = 16;
/// Empty columns between two sections.
const SECTION_GAP: i32 = 10;
/// A label longer than this is cut.
const LABEL_CHARS: usize = 14;

/// Colours that are told apart also by most colour-blind eyes; further experts get hues between them.
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(70, 70, 70),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 94, 240),
    RGBColor(128, 128, 0),
];

/// Some tokens that stand side by side under one title.
#[derive(Debug, Clone)]
pub struct Section {
    /// Shown above the columns.
    pub title: String,
    /// One for each token.
    pub labels: Vec<String>,
}

impl Section {
    /// The columns' width, or the title's.
    fn width(&self) -> i32 {
        (self.labels.len() as i32 * CELL).max(7 * self.title.chars().count() as i32)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws an SVG. The sections' labels, one after the other, are the trace's columns.
pub fn draw(path: &Path, title: &str, sections: &[Section], trace: &Trace, experts: &[String]) -> Result<()> {
    let mut svg = String::new();
    render(&mut svg, title, sections, trace, experts).map_err(|e| anyhow!("picture: {e}"))?;
    std::fs::write(path, svg).map_err(|e| anyhow!("--picture: {}: {e}", path.display()))
}

fn render(
    svg: &mut String,
    title: &str,
    sections: &[Section],
    trace: &Trace,
    experts: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let legend: i32 = experts.iter().map(|name| legend_width(name)).sum();
    let cells: i32 = sections.iter().map(|section| section.width() + SECTION_GAP).sum();
    let longest =
        sections.iter().flat_map(|section| &section.labels).map(|label| readable(label).chars().count());
    let width = (LEFT + cells.max(legend).max(7 * title.chars().count() as i32) + MARGIN) as u32;
    let height =
        (TOP + trace.rows.len() as i32 * CELL + 8 * longest.max().unwrap_or(0) as i32 + 2 * MARGIN) as u32;
    let root = SVGBackend::with_string(svg, (width, height)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (MARGIN, 14), ("sans-serif", 16)))?;
    draw_legend(&root, experts)?;
    draw_row_labels(&root, trace)?;
    let (mut x, mut first) = (LEFT, 0);
    for section in sections {
        draw_section(&root, x, first, section, trace)?;
        first += section.labels.len();
        x += section.width() + SECTION_GAP;
    }
    root.present()?;
    drop(root);
    Ok(())
}

fn legend_width(name: &str) -> i32 {
    34 + 8 * name.chars().count() as i32
}

fn draw_legend(root: &Area, experts: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let mut x = LEFT;
    for (expert, name) in experts.iter().enumerate() {
        root.draw(&Rectangle::new([(x, 40), (x + 13, 53)], colour(expert).filled()))?;
        let style = ("sans-serif", 13).into_font().into_text_style(root);
        root.draw(&Text::new(name.clone(), (x + 19, 47), style.pos(Pos::new(HPos::Left, VPos::Center))))?;
        x += legend_width(name);
    }
    Ok(())
}

fn draw_row_labels(root: &Area, trace: &Trace) -> Result<(), Box<dyn std::error::Error>> {
    let style = ("sans-serif", 12).into_font().into_text_style(root).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, (layer, projection)) in trace.rows.keys().enumerate() {
        let name = projection.name().trim_end_matches("_proj");
        let at = (LEFT - 8, TOP + row as i32 * CELL + CELL / 2);
        root.draw(&Text::new(format!("{layer} {name}"), at, style.clone()))?;
    }
    Ok(())
}

fn draw_section(
    root: &Area,
    x: i32,
    first: usize,
    section: &Section,
    trace: &Trace,
) -> Result<(), Box<dyn std::error::Error>> {
    let bottom = TOP + trace.rows.len() as i32 * CELL;
    root.draw(&Text::new(section.title.clone(), (x, TOP - 18), ("sans-serif", 13)))?;
    let mut last_layer = None;
    for (row, (&(layer, _), choices)) in trace.rows.iter().enumerate() {
        let y = TOP + row as i32 * CELL;
        for (column, &(expert, weight)) in choices.iter().skip(first).take(section.labels.len()).enumerate() {
            let left = x + column as i32 * CELL;
            // Pale where the second expert had almost as much to say.
            let fill = colour(expert).mix(f64::from(weight).clamp(0.15, 1.0)).filled();
            root.draw(&Rectangle::new([(left, y), (left + CELL - 1, y + CELL - 1)], fill))?;
        }
        if last_layer.replace(layer).is_some_and(|last| last != layer) {
            let right = x + section.labels.len() as i32 * CELL;
            root.draw(&PathElement::new(vec![(x, y - 1), (right, y - 1)], BLACK.stroke_width(1)))?;
        }
    }
    let font = ("sans-serif", 12).into_font().transform(FontTransform::Rotate270);
    let style = font.into_text_style(root).pos(Pos::new(HPos::Right, VPos::Center));
    for (column, label) in section.labels.iter().enumerate() {
        let at = (x + column as i32 * CELL + CELL / 2, bottom + 6);
        root.draw(&Text::new(readable(label), at, style.clone()))?;
    }
    Ok(())
}

fn colour(expert: usize) -> RGBColor {
    match COLOURS.get(expert) {
        Some(colour) => *colour,
        None => {
            // Steps of the golden angle keep neighbours apart.
            let (r, g, b) = HSLColor((expert as f64 * 0.381_966) % 1.0, 0.6, 0.45).rgb();
            RGBColor(r, g, b)
        }
    }
}

/// A token's text with its blanks made visible, and cut to fit.
fn readable(label: &str) -> String {
    let shown: String = label
        .chars()
        .map(|c| match c {
            ' ' => '\u{b7}',
            '\n' => '\u{21b5}',
            '\t' => '\u{2192}',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if shown.chars().count() <= LABEL_CHARS {
        return shown;
    }
    let mut cut: String = shown.chars().take(LABEL_CHARS - 1).collect();
    cut.push('\u{2026}');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::projection::Projection;
    use std::collections::BTreeMap;

    #[test]
    fn the_picture_has_a_cell_for_each_choice_and_names_the_experts() {
        let rows = BTreeMap::from([
            ((1, Projection::Gate), vec![(0, 0.6), (1, 0.9), (9, 1.0)]),
            ((2, Projection::Gate), vec![(1, 0.6), (1, 0.9), (0, 1.0)]),
        ]);
        let sections = [
            Section { title: "one".into(), labels: vec![" a".into(), "<b>&".into()] },
            Section { title: "two".into(), labels: vec!["\n".into()] },
        ];
        let experts: Vec<String> = (0..10).map(|e| format!("expert{e}")).collect();
        let mut svg = String::new();
        render(&mut svg, "t", &sections, &Trace { rows }, &experts).unwrap();
        // Background, legend, cells.
        assert_eq!(svg.matches("<rect").count(), 1 + 10 + 6);
        for text in ["expert9", "1 gate", "2 gate", "one", "two", "\u{b7}a", "\u{21b5}", "&lt;b&gt;&amp;"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn labels_are_cut_and_blanks_shown() {
        assert_eq!(readable(" a\tb\n"), "\u{b7}a\u{2192}b\u{21b5}");
        assert_eq!(readable("abcdefghijklmnop").chars().count(), LABEL_CHARS);
    }
}
