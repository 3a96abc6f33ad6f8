//! SVG to PNG with a font of our own, so that a machine without fonts draws the same picture.

use super::canvas::FONT;
use anyhow::{Context, Result};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};
use std::sync::Arc;

/// Pixels of a PNG for each of the SVG's.
pub const SCALE: f32 = 2.0;

/// The SVG with its texts laid out by the embedded font; no font of the system's is looked for.
pub fn parse(svg: &str) -> Result<Tree> {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    let family = FONT.split(',').next().unwrap_or(FONT);
    fonts.set_sans_serif_family(family);
    let options = Options { fontdb: Arc::new(fonts), font_family: family.into(), ..Options::default() };
    Tree::from_str(svg, &options).context("picture: not an SVG")
}

/// The PNG of an SVG.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let tree = parse(svg)?;
    let size = tree.size().to_int_size().scale_by(SCALE).context("picture: no size")?;
    let mut pixels = Pixmap::new(size.width(), size.height()).context("picture: no size")?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().context("picture: PNG")
}
