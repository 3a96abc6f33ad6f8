//! Pictures of a trace: which adapter each token took, or how much each layer gave to each adapter.

use anyhow::{Result, anyhow};
use molora::trace::{LayerTrace, Part, Trace};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeSet;
use std::path::Path;

const CELL: i32 = 17;
/// A share's cell: room for two digits.
const WIDE_CELL: i32 = 34;
const TOP: i32 = 92;
const MARGIN: i32 = 16;
/// Empty columns between two parts.
const PART_GAP: i32 = 10;
/// A label longer than this is cut.
const LABEL_CHARS: usize = 14;
/// With more adapters the shares' cells are narrow and empty.
const MAX_WIDE: usize = 32;

/// Colours that are told apart also by most colour-blind eyes; further experts get hues between them.
pub(crate) const COLOURS: [RGBColor; 9] = [
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

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Layers from top to bottom, tokens from left to right: each token's first choice, pale where it weighs little
    Tokens,
    /// Layers from top to bottom, adapters from left to right: shares of each layer's weights
    Shares,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Writes an SVG.
pub fn draw(path: &Path, kind: Kind, title: &str, trace: &Trace) -> Result<()> {
    let svg = svg(kind, title, trace)?;
    std::fs::write(path, svg).map_err(|e| anyhow!("--picture: {}: {e}", path.display()))
}

/// The SVG's text.
pub fn svg(kind: Kind, title: &str, trace: &Trace) -> Result<String> {
    let mut svg = String::new();
    let drawn = match kind {
        Kind::Tokens => draw_tokens(&mut svg, title, trace),
        Kind::Shares => draw_shares(&mut svg, title, trace),
    };
    drawn.map_err(|e| anyhow!("picture: {e}"))?;
    Ok(svg)
}

/// The labels of the rows, and where the first column begins.
struct RowLabels {
    labels: Vec<String>,
    /// By rows: the number in the layer's name, to part one block of the model from the next.
    blocks: Vec<Option<String>>,
    left: i32,
}

impl RowLabels {
    /// `layers.24.gate_proj` is `24 gate`, as long as all labels stay different.
    fn new(trace: &Trace) -> Self {
        let names = || trace.layers().iter().map(LayerTrace::name);
        let block = |name: &str| {
            let digits = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            name.split('.').find(digits).map(str::to_owned)
        };
        let short = |name: &str| {
            let last = name.rsplit('.').next().unwrap_or(name).trim_end_matches("_proj");
            block(name).map_or_else(|| last.to_owned(), |block| format!("{block} {last}"))
        };
        let mut labels: Vec<String> = names().map(short).collect();
        if labels.iter().collect::<BTreeSet<_>>().len() < labels.len() {
            labels = names().map(str::to_owned).collect();
        }
        let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0) as i32;
        Self { labels, blocks: names().map(block).collect(), left: (7 * longest + 2 * MARGIN).max(96) }
    }

    fn height(&self) -> i32 {
        self.labels.len() as i32 * CELL
    }

    fn draw(&self, root: &Area) -> Drawn {
        let style =
            ("sans-serif", 12).into_font().into_text_style(root).pos(Pos::new(HPos::Right, VPos::Center));
        for (row, label) in self.labels.iter().enumerate() {
            let at = (self.left - 8, TOP + row as i32 * CELL + CELL / 2);
            root.draw(&Text::new(label.clone(), at, style.clone()))?;
        }
        Ok(())
    }

    /// Lines between the blocks, from column to column.
    fn draw_lines(&self, root: &Area, from: i32, to: i32) -> Drawn {
        for row in 1..self.blocks.len() {
            if self.blocks[row] != self.blocks[row - 1] {
                let y = TOP + row as i32 * CELL - 1;
                root.draw(&PathElement::new(vec![(from, y), (to, y)], BLACK.stroke_width(1)))?;
            }
        }
        Ok(())
    }
}

/// The trace's parts, and one without labels for the tokens that none of them has.
fn parts(trace: &Trace) -> Vec<Part> {
    let mut parts = trace.parts().to_vec();
    let labelled: usize = parts.iter().map(|part| part.labels.len()).sum();
    let all = trace.layers().iter().map(LayerTrace::tokens).max().unwrap_or(0);
    if all > labelled {
        parts.push(Part { title: String::new(), labels: vec![String::new(); all - labelled] });
    }
    parts
}

/// The columns' width, or the title's.
fn part_width(part: &Part) -> i32 {
    (part.labels.len() as i32 * CELL).max(7 * part.title.chars().count() as i32)
}

fn draw_tokens(svg: &mut String, title: &str, trace: &Trace) -> Drawn {
    let (rows, parts) = (RowLabels::new(trace), parts(trace));
    let legend: i32 = trace.names().iter().map(|name| legend_width(name)).sum();
    let cells: i32 = parts.iter().map(|part| part_width(part) + PART_GAP).sum();
    let labels = parts.iter().flat_map(|part| &part.labels);
    let longest = labels.map(|label| readable(label).chars().count()).max().unwrap_or(0) as i32;
    let width = rows.left + cells.max(legend).max(7 * title.chars().count() as i32) + MARGIN;
    let height = TOP + rows.height() + 8 * longest + 2 * MARGIN;
    let root = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (MARGIN, 14), ("sans-serif", 16)))?;
    draw_legend(&root, rows.left, trace.names())?;
    rows.draw(&root)?;
    let (mut x, mut first) = (rows.left, 0);
    for part in &parts {
        draw_part(&root, &rows, x, first, part, trace)?;
        first += part.labels.len();
        x += part_width(part) + PART_GAP;
    }
    root.present()?;
    Ok(())
}

fn draw_shares(svg: &mut String, title: &str, trace: &Trace) -> Drawn {
    let (rows, names) = (RowLabels::new(trace), trace.names());
    let shares: Vec<Vec<f64>> = trace.layers().iter().map(|layer| shares(layer, names.len())).collect();
    let largest = shares.iter().flatten().copied().fold(0.0, f64::max);
    let title = format!("{title} (darkest: {:.0} %)", 100.0 * largest);
    let cell = if names.len() <= MAX_WIDE { WIDE_CELL } else { CELL };
    let longest = names.iter().map(|name| readable(name).chars().count()).max().unwrap_or(0) as i32;
    let (columns, bottom) = (names.len() as i32 * cell, TOP + rows.height());
    let width = rows.left + columns.max(7 * title.chars().count() as i32) + MARGIN;
    let size = (width as u32, (bottom + 8 * longest + 2 * MARGIN) as u32);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(title, (MARGIN, 14), ("sans-serif", 16)))?;
    rows.draw(&root)?;
    let digits =
        ("sans-serif", 11).into_font().into_text_style(&root).pos(Pos::new(HPos::Center, VPos::Center));
    for (row, shares) in shares.iter().enumerate() {
        let y = TOP + row as i32 * CELL;
        for (column, &share) in shares.iter().enumerate() {
            let left = rows.left + column as i32 * cell;
            let dark = if largest > 0.0 { share / largest } else { 0.0 };
            let fill = COLOURS[0].mix(dark).filled();
            root.draw(&Rectangle::new([(left, y), (left + cell - 1, y + CELL - 1)], fill))?;
            if cell == WIDE_CELL && share > 0.0 {
                let style = digits.clone().color(if dark > 0.6 { &WHITE } else { &BLACK });
                let at = (left + cell / 2, y + CELL / 2);
                root.draw(&Text::new(format!("{:.0}", 100.0 * share), at, style))?;
            }
        }
    }
    rows.draw_lines(&root, rows.left, rows.left + columns)?;
    draw_below(&root, names, |column| (rows.left + column * cell + cell / 2, bottom + 6))?;
    root.present()?;
    Ok(())
}

/// Each adapter's share of the layer's weights, by their magnitude.
fn shares(layer: &LayerTrace, adapters: usize) -> Vec<f64> {
    let (mut shares, mut all) = (vec![0.0; adapters], 0.0);
    for (id, weight) in (0..layer.tokens()).flat_map(|token| layer.of(token)) {
        shares[id] += f64::from(weight.abs());
        all += f64::from(weight.abs());
    }
    shares.iter().map(|share| if all > 0.0 { share / all } else { 0.0 }).collect()
}

fn legend_width(name: &str) -> i32 {
    34 + 8 * name.chars().count() as i32
}

fn draw_legend(root: &Area, left: i32, names: &[String]) -> Drawn {
    let mut x = left;
    for (adapter, name) in names.iter().enumerate() {
        root.draw(&Rectangle::new([(x, 40), (x + 13, 53)], colour(adapter).filled()))?;
        let style = ("sans-serif", 13).into_font().into_text_style(root);
        root.draw(&Text::new(name.clone(), (x + 19, 47), style.pos(Pos::new(HPos::Left, VPos::Center))))?;
        x += legend_width(name);
    }
    Ok(())
}

fn draw_part(root: &Area, rows: &RowLabels, x: i32, first: usize, part: &Part, trace: &Trace) -> Drawn {
    root.draw(&Text::new(part.title.clone(), (x, TOP - 18), ("sans-serif", 13)))?;
    for (row, layer) in trace.layers().iter().enumerate() {
        let y = TOP + row as i32 * CELL;
        for column in 0..part.labels.len() {
            let Some((adapter, weight)) = layer.of(first + column).next() else { continue };
            let left = x + column as i32 * CELL;
            // Pale where the second adapter had almost as much to say.
            let fill = colour(adapter).mix(f64::from(weight.abs()).clamp(0.15, 1.0)).filled();
            root.draw(&Rectangle::new([(left, y), (left + CELL - 1, y + CELL - 1)], fill))?;
        }
    }
    rows.draw_lines(root, x, x + part.labels.len() as i32 * CELL)?;
    let bottom = TOP + rows.height();
    draw_below(root, &part.labels, |column| (x + column * CELL + CELL / 2, bottom + 6))
}

/// Labels that stand upright below their columns.
fn draw_below(root: &Area, labels: &[String], at: impl Fn(i32) -> (i32, i32)) -> Drawn {
    let font = ("sans-serif", 12).into_font().transform(FontTransform::Rotate270);
    let style = font.into_text_style(root).pos(Pos::new(HPos::Right, VPos::Center));
    for (column, label) in labels.iter().enumerate().filter(|(_, label)| !label.is_empty()) {
        root.draw(&Text::new(readable(label), at(column as i32), style.clone()))?;
    }
    Ok(())
}

fn colour(adapter: usize) -> RGBColor {
    match COLOURS.get(adapter) {
        Some(colour) => *colour,
        None => {
            // Steps of the golden angle keep neighbours apart.
            let (r, g, b) = HSLColor((adapter as f64 * 0.381_966) % 1.0, 0.6, 0.45).rgb();
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

    fn trace() -> Trace {
        let mut trace = Trace::new((0..10).map(|adapter| format!("adapter{adapter}")));
        trace.record("layers.1.gate_proj", 1, &[0, 1, 9], &[0.6, 0.9, 1.0]).unwrap();
        trace
            .record("layers.2.gate_proj", 2, &[1, 0, -1, -1, 0, 1], &[0.75, 0.25, 0.0, 0.0, 0.5, 0.5])
            .unwrap();
        trace.add_part("one", vec![" a".into(), "<b>&".into()]);
        trace
    }

    #[test]
    fn tokens_have_a_cell_for_each_choice_and_the_adapters_names() {
        let svg = svg(Kind::Tokens, "t", &trace()).unwrap();
        // Background, legend, cells: one token of the second layer took nothing.
        assert_eq!(svg.matches("<rect").count(), 1 + 10 + 5);
        for text in ["adapter9", "1 gate", "2 gate", "one", "\u{b7}a", "&lt;b&gt;&amp;"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn shares_have_a_cell_for_each_layer_and_adapter_that_it_took() {
        let svg = svg(Kind::Shares, "t", &trace()).unwrap();
        assert_eq!(svg.matches("<rect").count(), 1 + 3 + 2, "background, cells");
        for text in ["adapter9", "1 gate", "2 gate", "darkest: 62 %"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        let of = shares(&trace().layers()[1], 10);
        assert_eq!((of[0], of[1], of[2]), (0.375, 0.625, 0.0));
    }

    #[test]
    fn empty_traces_and_many_adapters_are_drawn() {
        for kind in [Kind::Tokens, Kind::Shares] {
            assert!(svg(kind, "t", &Trace::new(["a"])).unwrap().contains("</svg>"));
            let mut many = Trace::new((0..200).map(|adapter| adapter.to_string()));
            many.record("x", 1, &[199, -1], &[-1.0, 0.0]).unwrap();
            assert!(svg(kind, "t", &many).unwrap().contains("199"));
        }
    }

    #[test]
    fn labels_that_would_be_alike_are_the_whole_names() {
        let mut trace = Trace::new(["a"]);
        trace.record("encoder.block.0.q", 1, &[0], &[1.0]).unwrap();
        trace.record("decoder.block.0.q", 1, &[0], &[1.0]).unwrap();
        assert_eq!(RowLabels::new(&trace).labels, ["encoder.block.0.q", "decoder.block.0.q"]);
    }

    #[test]
    fn labels_are_cut_and_blanks_shown() {
        assert_eq!(readable(" a\tb\n"), "\u{b7}a\u{2192}b\u{21b5}");
        assert_eq!(readable("abcdefghijklmnop").chars().count(), LABEL_CHARS);
    }
}
