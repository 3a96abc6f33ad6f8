//! An SVG to draw on: texts, lines and marks in one font, whose widths are known well enough to keep texts apart.

use crate::picture::COLOURS;
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// The font that PNGs are drawn with; others, where an SVG's reader lacks it, are not wider.
pub const FONT: &str = "DejaVu Sans, Verdana, sans-serif";
/// The library divides sizes of fonts by this; ours are pixels.
const FONT_UNIT: f64 = 1.24;
/// Grey of axes and their texts, dark enough to be read on white.
pub const GREY: RGBColor = RGBColor(90, 90, 90);
/// Grey of the lines behind everything.
pub const PALE: RGBColor = RGBColor(222, 222, 222);

/// Left, top, right, bottom in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

impl Frame {
    /// Of a text on the middle of its left end.
    pub fn of_text(text: &str, size: f64, (x, y): (f64, f64)) -> Self {
        Self { left: x, top: y - 0.55 * size, right: x + width(text, size), bottom: y + 0.55 * size }
    }

    pub fn around((x, y): (f64, f64), half: f64) -> Self {
        Self { left: x - half, top: y - half, right: x + half, bottom: y + half }
    }

    pub fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    pub fn holds(&self, other: &Self) -> bool {
        self.left <= other.left
            && other.right <= self.right
            && self.top <= other.top
            && other.bottom <= self.bottom
    }
}

/// At most what the font takes for a text: its wide letters are rare in ours.
pub fn width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 1.0,
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '/' | '|' | ' ' | '\'' => 0.4,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '-' => 0.42,
        '_' => 0.51,
        c if c.is_uppercase() => 0.78,
        _ => 0.64,
    };
    size * text.chars().map(em).sum::<f64>()
}

/// Where a text stands to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Left,
    Middle,
    Right,
}

/// The drawing.
pub struct Canvas<'a> {
    root: DrawingArea<SVGBackend<'a>, Shift>,
}

fn pixel((x, y): (f64, f64)) -> (i32, i32) {
    (x.round() as i32, y.round() as i32)
}

/// Errors of the library's drawing are not ones that can be sent on.
fn text_of(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("picture: {error}")
}

impl<'a> Canvas<'a> {
    /// White, of a size in pixels.
    pub fn new(svg: &'a mut String, width: f64, height: f64) -> Result<Self> {
        let root =
            SVGBackend::with_string(svg, (width.ceil() as u32, height.ceil() as u32)).into_drawing_area();
        root.fill(&WHITE).map_err(text_of)?;
        Ok(Self { root })
    }

    /// A text whose middle line is at the point's height.
    pub fn text(
        &self,
        text: &str,
        size: f64,
        colour: RGBColor,
        at: (f64, f64),
        anchor: Anchor,
    ) -> Result<()> {
        self.place(text, (FONT, size * FONT_UNIT).into_font(), colour, at, anchor)
    }

    /// A text read from bottom to top, in the middle of the point.
    pub fn upright(&self, text: &str, size: f64, colour: RGBColor, at: (f64, f64)) -> Result<()> {
        let font = (FONT, size * FONT_UNIT).into_font().transform(FontTransform::Rotate270);
        self.place(text, font, colour, at, Anchor::Middle)
    }

    fn place(
        &self,
        text: &str,
        font: FontDesc<'_>,
        colour: RGBColor,
        at: (f64, f64),
        anchor: Anchor,
    ) -> Result<()> {
        let side = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        let style = font.into_text_style(&self.root).pos(Pos::new(side, VPos::Center)).color(&colour);
        self.root.draw(&Text::new(text.to_owned(), pixel(at), style)).map_err(text_of)
    }

    /// A line through points.
    pub fn line(&self, points: &[(f64, f64)], colour: RGBColor, width: u32) -> Result<()> {
        let points: Vec<_> = points.iter().copied().map(pixel).collect();
        self.root.draw(&PathElement::new(points, colour.stroke_width(width))).map_err(text_of)
    }

    /// A filled rectangle.
    pub fn rectangle(&self, frame: Frame, colour: RGBColor) -> Result<()> {
        let corners = [pixel((frame.left, frame.top)), pixel((frame.right, frame.bottom))];
        self.root.draw(&Rectangle::new(corners, colour.filled())).map_err(text_of)
    }

    /// The `which`-th mark: its shape and its colour are told apart from the others' each alone, up to five and nine.
    pub fn mark(&self, which: usize, at: (f64, f64)) -> Result<()> {
        let (x, y) = pixel(at);
        let colour = colour(which);
        // A white rim, so that marks on top of each other are still told apart.
        self.root.draw(&Circle::new((x, y), 7, WHITE.filled())).map_err(text_of)?;
        let polygon = |points: &[(i32, i32)]| {
            let points = points.iter().map(|(dx, dy)| (x + dx, y + dy)).collect::<Vec<_>>();
            self.root.draw(&Polygon::new(points, colour.filled()))
        };
        match which % 5 {
            0 => self.root.draw(&Circle::new((x, y), 5, colour.filled())),
            1 => polygon(&[(-4, -4), (4, -4), (4, 4), (-4, 4)]),
            2 => polygon(&[(0, -6), (5, 4), (-5, 4)]),
            3 => polygon(&[(0, -6), (6, 0), (0, 6), (-6, 0)]),
            _ => polygon(&[(0, 6), (5, -4), (-5, -4)]),
        }
        .map_err(text_of)
    }

    /// Ends the drawing.
    pub fn finish(self) -> Result<()> {
        self.root.present().map_err(text_of)
    }
}

/// The `which`-th colour.
pub fn colour(which: usize) -> RGBColor {
    COLOURS[which % COLOURS.len()]
}
