//! The layer by hand around a crate's product.
//!
//! - `across`: rows sorted by expert, blocks of one expert's rows over the threads, a product on one thread in each;
//! - `flat`: two products over all experts, with zeros where an expert was not chosen.
//!
//! Scratch memory is made once; what is sorted, and y, in the call.

use crate::multiply::Multiply;
use molora_check::contest::{Arrays, Case, Kind, Series};
use rayon::prelude::*;
use std::convert::Infallible;
use std::sync::Arc;

/// Fewest rows that a task copies or adds.
const LEAST_ROWS: usize = 16;

/// What the series of a case share.
struct Shared {
    case: Case,
    threads: usize,
    x: Vec<f32>,
    ids: Vec<i32>,
    /// With the scaling.
    gates: Vec<f32>,
    w: Vec<Vec<f32>>,
    /// `[E, r, d_in]`, for both ways.
    a: Vec<Vec<f32>>,
    /// `[E, d_out, r]`.
    b: Vec<Vec<f32>>,
    /// `[d_out, E, r]`.
    b_flat: Vec<Vec<f32>>,
}

/// All series of a case.
pub fn series<M: Multiply>(m: M, case: &Case, arrays: Arrays, threads: usize) -> Vec<Series> {
    let shared = Arc::new(Shared::new(case, arrays, threads));
    if case.kind == Kind::Ggemm {
        return vec![grouped(m, shared)];
    }
    let own = shared.clone();
    let base = move |i: usize| Ok::<_, Infallible>(own.base(m, i));
    let mut all = vec![Series::new("base", "product", base)];
    for (op, with_base) in [("lora", false), ("layer", true)] {
        all.push(across(m, shared.clone(), op, with_base));
        all.push(flat(m, shared.clone(), op, with_base));
    }
    all
}

impl Shared {
    fn new(case: &Case, arrays: Arrays, threads: usize) -> Self {
        let (experts, rank, width) = (case.experts, case.rank, case.out_features);
        let mut b_flat = vec![0.0; arrays.b.len()];
        for (i, &value) in arrays.b.iter().enumerate() {
            let (e, o, r) = (i / (width * rank), i / rank % width, i % rank);
            b_flat[(o * experts + e) * rank + r] = value;
        }
        let copies = |values: &Vec<f32>, count: usize| (0..count).map(|_| values.clone()).collect();
        Self {
            case: case.clone(),
            threads,
            gates: arrays.gates.iter().map(|gate| gate * case.scale).collect(),
            w: copies(&arrays.w, case.copies.w),
            a: copies(&arrays.a, case.copies.ab),
            b: copies(&arrays.b, case.copies.ab),
            b_flat: copies(&b_flat, case.copies.ab),
            x: arrays.x,
            ids: arrays.ids,
        }
    }

    /// x w^T.
    fn base<M: Multiply>(&self, m: M, i: usize) -> Vec<f32> {
        let Case { tokens, in_features, out_features, .. } = self.case;
        let mut y = vec![0.0; tokens * out_features];
        let sizes = (tokens, out_features, in_features);
        m.multiply(&mut y, &self.x, &self.w[i % self.w.len()], sizes, false, self.threads);
        y
    }

    /// What the experts' part is added to.
    fn start<M: Multiply>(&self, m: M, i: usize, with_base: bool) -> Vec<f32> {
        if with_base { self.base(m, i) } else { vec![0.0; self.case.tokens * self.case.out_features] }
    }
}

/// Rows of one expert, in the sorted order.
struct Block {
    expert: usize,
    first: usize,
    rows: usize,
}

/// Routes by expert.
struct Sorted {
    routes: Vec<u32>,
    /// Where each route went.
    places: Vec<u32>,
    blocks: Vec<Block>,
}

impl Sorted {
    fn new(ids: &[i32], experts: usize, threads: usize) -> Self {
        let mut starts = vec![0usize; experts + 1];
        ids.iter().for_each(|&id| starts[id as usize + 1] += 1);
        (0..experts).for_each(|e| starts[e + 1] += starts[e]);
        // Several blocks for every thread, of rows enough for a product to be one.
        let most = (ids.len() / (threads * 4)).clamp(64, 256);
        let mut blocks = Vec::new();
        for expert in 0..experts {
            for first in (starts[expert]..starts[expert + 1]).step_by(most) {
                blocks.push(Block { expert, first, rows: most.min(starts[expert + 1] - first) });
            }
        }
        let (mut routes, mut places) = (vec![0; ids.len()], vec![0; ids.len()]);
        for (route, &id) in ids.iter().enumerate() {
            let place = &mut starts[id as usize];
            (routes[*place], places[route]) = (route as u32, *place as u32);
            *place += 1;
        }
        Self { routes, places, blocks }
    }

    /// Rows of x in the sorted order.
    fn gather(&self, x: &[f32], width: usize, top_k: usize, sorted: &mut [f32]) {
        let rows = sorted.par_chunks_mut(width).with_min_len(LEAST_ROWS).zip(&self.routes);
        rows.for_each(|(row, &route)| row.copy_from_slice(&x[route as usize / top_k * width..][..width]));
    }

    /// Every block's part of rows of `width` elements.
    fn parts<'a>(&self, mut rows: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        let part = |block: &Block| rows.split_off_mut(..block.rows * width).unwrap_or_default();
        self.blocks.iter().map(part).collect()
    }
}

fn grouped<M: Multiply>(m: M, shared: Arc<Shared>) -> Series {
    let Case { top_k, experts, in_features, out_features, .. } = shared.case;
    let routes = shared.case.routes();
    let (mut xs, mut ys) = (vec![0.0; routes * in_features], vec![0.0; routes * out_features]);
    Series::new("ggemm", "across", move |i| {
        let w = &shared.w[i % shared.w.len()];
        let sorted = Sorted::new(&shared.ids, experts, shared.threads);
        sorted.gather(&shared.x, in_features, top_k, &mut xs);
        let tasks: Vec<_> = sorted.blocks.iter().zip(sorted.parts(&mut ys, out_features)).collect();
        tasks.into_par_iter().with_max_len(1).for_each(|(block, ys)| {
            let x = &xs[block.first * in_features..][..block.rows * in_features];
            let w = &w[block.expert * out_features * in_features..][..out_features * in_features];
            m.multiply(ys, x, w, (block.rows, out_features, in_features), false, 1);
        });
        let mut y = vec![0.0; routes * out_features];
        let rows = y.par_chunks_mut(out_features).with_min_len(LEAST_ROWS).zip(&sorted.places);
        rows.for_each(|(row, &place)| {
            row.copy_from_slice(&ys[place as usize * out_features..][..out_features])
        });
        Ok::<_, Infallible>(y)
    })
}

fn across<M: Multiply>(m: M, shared: Arc<Shared>, op: &'static str, with_base: bool) -> Series {
    let Case { top_k, experts, rank, in_features, out_features, .. } = shared.case;
    let routes = shared.case.routes();
    let [mut xs, mut hs, mut ys] = [in_features, rank, out_features].map(|width| vec![0.0; routes * width]);
    Series::new(op, "across", move |i| {
        let at = i % shared.a.len();
        let (a, b) = (&shared.a[at], &shared.b[at]);
        let mut y = shared.start(m, i, with_base);
        let sorted = Sorted::new(&shared.ids, experts, shared.threads);
        sorted.gather(&shared.x, in_features, top_k, &mut xs);
        let parts = sorted.parts(&mut hs, rank).into_iter().zip(sorted.parts(&mut ys, out_features));
        let tasks: Vec<_> = sorted.blocks.iter().zip(parts).collect();
        tasks.into_par_iter().with_max_len(1).for_each(|(block, (hs, ys))| {
            let x = &xs[block.first * in_features..][..block.rows * in_features];
            let a = &a[block.expert * rank * in_features..][..rank * in_features];
            let b = &b[block.expert * rank * out_features..][..rank * out_features];
            m.multiply(hs, x, a, (block.rows, rank, in_features), false, 1);
            for (h, &route) in hs.chunks_mut(rank).zip(&sorted.routes[block.first..]) {
                h.iter_mut().for_each(|h| *h *= shared.gates[route as usize]);
            }
            m.multiply(ys, hs, b, (block.rows, out_features, rank), false, 1);
        });
        let rows =
            y.par_chunks_mut(out_features).with_min_len(LEAST_ROWS).zip(sorted.places.par_chunks(top_k));
        rows.for_each(|(row, places)| {
            for &place in places {
                let part = &ys[place as usize * out_features..][..out_features];
                row.iter_mut().zip(part).for_each(|(y, part)| *y += part);
            }
        });
        Ok::<_, Infallible>(y)
    })
}

fn flat<M: Multiply>(m: M, shared: Arc<Shared>, op: &'static str, with_base: bool) -> Series {
    let Case { tokens, top_k, experts, rank, in_features, out_features, .. } = shared.case;
    let ranks = experts * rank;
    let mut h = vec![0.0; tokens * ranks];
    Series::new(op, "flat", move |i| {
        let at = i % shared.a.len();
        let mut y = shared.start(m, i, with_base);
        m.multiply(&mut h, &shared.x, &shared.a[at], (tokens, ranks, in_features), false, shared.threads);
        h.par_chunks_mut(ranks).with_min_len(LEAST_ROWS).enumerate().for_each(|(t, row)| {
            let routes = t * top_k..(t + 1) * top_k;
            let mut gates = vec![0.0; experts];
            for (&id, &gate) in shared.ids[routes.clone()].iter().zip(&shared.gates[routes]) {
                gates[id as usize] += gate;
            }
            for (part, gate) in row.chunks_mut(rank).zip(gates) {
                part.iter_mut().for_each(|h| *h *= gate);
            }
        });
        m.multiply(&mut y, &h, &shared.b_flat[at], (tokens, out_features, ranks), with_base, shared.threads);
        Ok::<_, Infallible>(y)
    })
}
