//! What an engine multiplies itself in the dense form: rows `[x | z]`, and `[weight | B_all]`.

use crate::device::wgpu::{self as device, Binding, Launch, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::fused::{OP, Sizes, check_concat};
use crate::ops::{check_packed, word};

/// The rows `[x | z]` and where z begins, where z lies in x's buffer; nothing where it has one of its own.
pub(super) fn pair_of<'a, X: Element, Z: Element>(
    sizes: &Sizes,
    used_rows: usize,
    x: View<'a, X>,
    z: View<'a, Z>,
) -> Result<Option<(View<'a, X>, usize)>> {
    if z.buffer != x.buffer || z.is_empty() {
        return Ok(None);
    }
    let begin = z.first.wrapping_sub(x.first);
    let inside = z.first >= x.first + sizes.in_features && begin.saturating_add(used_rows) <= sizes.x_stride;
    if X::TYPE != Z::TYPE || sizes.h_stride != sizes.x_stride || !inside {
        let expected =
            "a buffer of its own, or columns of x's rows behind in_features, of x's element and stride";
        return Err(Error::argument(OP, "z", expected, "x's buffer"));
    }
    Ok(Some((View::new(x.buffer, x.first, x.len().max(begin + z.len()))?, begin)))
}

impl Wgpu {
    /// `[weight | B_all]` as rows `[out_features, in_features + used_rows]`, `row_stride` elements apart: with rows `[x | z]` of
    /// the engine's own ([`Wgpu::fused_gate`]'s z behind x), `[x | z] [weight | B_all]^T` is the fused layer in one plain product.
    ///
    /// The better choice than [`Wgpu::fused_dense`] only where the engine's own product is faster than ours (one by cooperative
    /// matrices, say), batches are large and adapters seldom change: the rows must be made anew whenever one comes or goes, and
    /// take the weight's memory once more, within the device's binding limit. Rows of B that no adapter holds are copied as
    /// they are and meet zeros of z.
    ///
    /// # Errors
    /// Sizes that do not fit, a packed pool, adapters of another element type than the weight's.
    pub fn fused_concat<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        pool: &device::Pool,
        weight: View<X>,
        row_stride: usize,
        concat: View<X>,
    ) -> Result<()> {
        let slots = pool.slots();
        check_concat(slots, X::TYPE, weight.len(), row_stride, concat.len())?;
        let (inputs, outputs, rows) =
            (slots.sizes().in_features, slots.sizes().out_features, slots.used_rows());
        check_packed::<X>(OP, "weight", inputs, weight.len())?;
        check_packed::<X>(OP, "row", row_stride, concat.len())?;
        let pairs = (inputs + rows).div_ceil(2);
        let launch = Launch {
            op: OP,
            entry: "fused_concat",
            body: &[include_str!("../../../../shaders/fused_concat.wgsl")],
            constants: &[],
            params: &[
                ("in_features", word(OP, "in_features", inputs)?),
                ("out_features", word(OP, "out_features", outputs)?),
                ("width", word(OP, "used_rows", inputs + rows)?),
                ("pairs", word(OP, "used_rows", pairs)?),
                ("row_stride", word(OP, "row_stride", row_stride)?),
                ("b_stride", word(OP, "b_stride", pool.b_stride())?),
            ],
            bindings: &[
                Binding::read("w", weight),
                Binding::pool_b("b", pool),
                Binding::write("concat", concat),
            ],
            groups: word(OP, "out_features", outputs.saturating_mul(pairs).div_ceil(64))?,
        };
        self.launch(encoder, &launch)
    }
}
