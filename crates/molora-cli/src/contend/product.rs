//! Products without adapters: the base, and the base of experts.

use molora::adapter::slots::PoolSizes;
use molora::device::cpu::{Pool, Weight};
use molora::element::{Element, ElementType};
use molora::ops::{base, grouped, plan};
use molora::{Cpu, Result};
use molora_check::contest::{Answer, Arrays, Case, Series};
use std::rc::Rc;

/// y as the kernels write it.
pub struct Rows<X>(pub Vec<X>);

impl<X: Element> Answer for Rows<X> {
    fn values(self: Box<Self>) -> std::result::Result<Vec<f32>, String> {
        Ok(self.0.iter().map(|v| v.to_f32()).collect())
    }
}

/// `len` zeros.
pub fn zeros<X: Element>(len: usize) -> Vec<X> {
    vec![X::from_f32(0.0); len]
}

/// Rounded to an element type.
pub fn rounded<X: Element>(values: &[f32]) -> Vec<X> {
    values.iter().map(|&v| X::from_f32(v)).collect()
}

/// Copies of a packed weight of `rows` rows. Of elements of fewer bytes there are so many more that all of them together
/// take as much memory.
pub fn weights<X: Element>(cpu: &Cpu, case: &Case, rows: usize, w: &[f32]) -> Result<Rc<Vec<Weight<X>>>> {
    let w = rounded::<X>(w);
    let copies = case.copies.w * (4 / X::TYPE.bytes());
    Ok(Rc::new((0..copies).map(|_| cpu.pack(rows, case.in_features, &w)).collect::<Result<_>>()?))
}

/// Sizes of the base product of a case.
pub fn base_sizes(case: &Case) -> base::Sizes {
    let Case { tokens, in_features, out_features, .. } = *case;
    base::Sizes { tokens, in_features, out_features, x_stride: in_features, y_stride: out_features }
}

/// The base product on packed weights.
pub fn packed<X: Element>(
    cpu: &Cpu,
    case: &Case,
    variant: &'static str,
    weights: Rc<Vec<Weight<X>>>,
    x: Rc<Vec<X>>,
) -> Series {
    let (cpu, sizes) = (cpu.clone(), base_sizes(case));
    Series::new("base", variant, move |i| {
        let mut y = zeros(sizes.tokens * sizes.out_features);
        cpu.base(&sizes, &weights[i % weights.len()], None, &x, &mut y)?;
        Ok::<_, molora::Error>(Rows(y))
    })
}

/// The grouped product without adapters.
pub fn grouped(cpu: &Cpu, case: &Case, arrays: Arrays) -> Result<Vec<Series>> {
    let Case { tokens, top_k, experts, in_features, out_features, .. } = *case;
    let sizes = grouped::Sizes {
        tokens,
        top_k,
        experts,
        in_features,
        out_features,
        x_stride: in_features,
        h_stride: 0,
        y_stride: out_features,
        x_per_route: false,
        rows: grouped::Rows::Plain,
    };
    let plan_sizes = plan::Sizes { tokens, top_k, experts };
    let weights = weights::<f32>(cpu, case, experts * out_features, &arrays.w)?;
    let element = ElementType::F32;
    // No adapter: one empty slot, and no route that names it.
    let pool = Pool::new(PoolSizes { in_features, out_features, experts: 1, rank_capacity: 1, element })?;
    let (markers, loras) = (Pool::markers(experts)?, plan::Sizes { experts: 1, ..plan_sizes });
    let none = cpu.plan(&loras, &pool, &vec![-1; sizes.routes()])?;
    let (cpu, Arrays { x, ids, gates, .. }) = (cpu.clone(), arrays);
    Ok(vec![Series::new("ggemm", "grouped", move |i| {
        let mut y = zeros::<f32>(sizes.routes() * out_features);
        let plan = cpu.plan(&plan_sizes, &markers, &ids)?;
        let weight = &weights[i % weights.len()];
        cpu.grouped(&sizes, &plan, &pool, &none, weight, &x, &[], &gates, &mut y)?;
        Ok::<_, molora::Error>(y)
    })])
}
