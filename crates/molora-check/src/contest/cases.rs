//! The field's shapes, with seeded inputs and float64 references in files.

use super::{Case, Cases, Copies, Kind, npy};
use crate::rng::Rng;
use rayon::prelude::*;
use std::path::Path;

/// Another number is other inputs: files made before count no more.
const GENERATION: u64 = 1;

/// Weights rotate through copies that together take this much: several times what caches hold.
const ALL_COPIES: f64 = 144e6;

/// Scores closer than this could be chosen in another order by another order of summation.
const GAP: f64 = 1e-3;

/// Standard deviation of a uniform value in (-1, 1), inverted.
const UNIFORM: f32 = 1.732_050_8;

/// All cases.
pub fn all() -> Vec<Case> {
    let with = |mut case: Case| {
        case.tags = vec!["bf16".into()];
        case
    };
    vec![
        with(layer((1, 2048, 2048), (8, 2, 16), "uniform")),
        layer((8, 2048, 2048), (8, 2, 16), "uniform"),
        with(layer((64, 2048, 2048), (8, 2, 16), "uniform")),
        with(layer((512, 2048, 2048), (8, 2, 16), "uniform")),
        layer((2048, 2048, 2048), (8, 2, 8), "uniform"),
        layer((64, 2048, 2048), (64, 4, 16), "uniform"),
        with(layer((512, 2048, 2048), (64, 4, 64), "uniform")),
        layer((512, 2048, 2048), (64, 2, 16), "zipf"),
        layer((1, 4096, 4096), (16, 2, 16), "uniform"),
        layer((64, 4096, 4096), (16, 4, 64), "uniform"),
        layer((512, 4096, 4096), (8, 2, 8), "uniform"),
        layer((8, 4096, 11008), (8, 2, 16), "uniform"),
        layer((64, 4096, 11008), (16, 4, 16), "uniform"),
        layer((64, 2048, 2048), (64, 1, 16), "own"),
        layer((64, 4096, 4096), (64, 1, 16), "own"),
        grouped(64, 2048, 1408, (16, 2)),
        grouped(512, 2048, 1408, (16, 2)),
    ]
}

/// A layer of `(tokens, in_features, out_features)` with `(experts, top_k, rank)`, whose tokens choose as `dist` says.
pub fn layer(
    (tokens, in_features, out_features): (usize, usize, usize),
    (experts, top_k, rank): (usize, usize, usize),
    dist: &str,
) -> Case {
    let name = if dist == "uniform" { String::new() } else { format!("_{dist}") };
    let adapters = 4.0 * (experts * rank * (in_features + out_features)) as f64;
    let used = adapters * experts.min(tokens * top_k) as f64 / experts as f64;
    // So many pools that what a call reads of them is not in a cache, within 300 MB and 128.
    let ab = (ALL_COPIES / used).ceil().min((300e6 / adapters).floor()).clamp(1.0, 128.0);
    let mut ops = vec!["base", "lora", "layer"];
    if dist != "own" {
        ops.push("full");
    }
    Case {
        id: format!("T{tokens}_{in_features}x{out_features}_E{experts}k{top_k}r{rank}{name}"),
        kind: Kind::Molora,
        tokens,
        in_features,
        out_features,
        experts,
        top_k,
        rank,
        scale: 2.0,
        dist: dist.into(),
        copies: Copies { w: copies(in_features * out_features), ab: ab as usize },
        ops: ops.into_iter().map(String::from).collect(),
        tags: Vec::new(),
    }
}

/// A grouped product of as many base experts.
pub fn grouped(
    tokens: usize,
    in_features: usize,
    out_features: usize,
    (experts, top_k): (usize, usize),
) -> Case {
    Case {
        id: format!("GG_T{tokens}_{in_features}x{out_features}_E{experts}k{top_k}"),
        kind: Kind::Ggemm,
        tokens,
        in_features,
        out_features,
        experts,
        top_k,
        rank: 0,
        scale: 1.0,
        dist: "uniform".into(),
        copies: Copies { w: copies(experts * in_features * out_features), ab: 1 },
        ops: vec!["ggemm".into()],
        tags: Vec::new(),
    }
}

fn copies(elements: usize) -> usize {
    (ALL_COPIES / (4 * elements) as f64).ceil() as usize
}

/// The name of an operation's reference.
pub fn reference(op: &str) -> &'static str {
    match op {
        "base" => "ref_base",
        "lora" => "ref_lora",
        "ggemm" => "ref_ggemm",
        _ => "ref_layer",
    }
}

/// Writes the file of cases, which one-shot contenders read.
pub fn write_list(data: &Path, cases: &[Case]) -> Result<(), String> {
    let list = Cases { data: data.display().to_string(), cases: cases.to_vec() };
    let text = serde_json::to_string_pretty(&list).map_err(|why| why.to_string())?;
    let path = data.join("cases.json");
    std::fs::write(&path, text).map_err(|why| format!("{}: {why}", path.display()))
}

/// Makes a case's files, where they are not there already.
pub fn make(case: &Case, data: &Path) -> Result<(), String> {
    // Written last.
    let last = case.file(data, &format!("made{GENERATION}"));
    if last.exists() {
        return Ok(());
    }
    let write =
        |name: &str, shape: &[usize], values: &[f32]| npy::write(&case.file(data, name), shape, values);
    let Case { tokens: t, in_features: i, out_features: o, experts: e, top_k: k, rank: r, .. } = *case;
    let mut rng = Rng::named(&case.id, GENERATION);
    let narrow = (i as f32).sqrt().recip();
    let mut x = values(&mut rng, t * i, 1.0);
    let (router, router_bias) = match case.dist.as_str() {
        "own" => (vec![0.0; e * i], vec![0.0; e]),
        "zipf" => {
            let places = permutation(&mut rng, e);
            let bias = places.iter().map(|&place| -1.2 * (1.0 + place as f32).ln());
            (values(&mut rng, e * i, narrow), bias.collect())
        }
        _ => (values(&mut rng, e * i, narrow), vec![0.0; e]),
    };
    let (ids, gates) = match case.dist.as_str() {
        "own" => {
            (permutation(&mut rng, e.max(t))[..t].iter().map(|&id| (id % e) as i32).collect(), vec![1.0; t])
        }
        _ => choose(case, &mut rng, &mut x, &router, &router_bias),
    };
    write("x", &[t, i], &x)?;
    npy::write(&case.file(data, "idx"), &[t, k], &ids)?;
    write("gate", &[t, k], &gates)?;
    let reference =
        |name: &str, rows: usize, values: &[f64]| npy::write(&case.file(data, name), &[rows, o], values);
    if case.kind == Kind::Ggemm {
        let w = values(&mut rng, e * o * i, narrow);
        write("we", &[e, o, i], &w)?;
        reference("ref_ggemm", t * k, &grouped_reference(case, &x, &ids, &w))?;
    } else {
        let (w, a) = (values(&mut rng, o * i, narrow), values(&mut rng, e * r * i, narrow));
        let b = values(&mut rng, e * o * r, 0.5 * (r as f32).sqrt().recip());
        let inputs: [(&str, &[usize], &[f32]); 5] = [
            ("w", &[o, i], &w),
            ("a", &[e, r, i], &a),
            ("b", &[e, o, r], &b),
            ("wr", &[e, i], &router),
            ("br", &[e], &router_bias),
        ];
        inputs.iter().try_for_each(|(name, shape, values)| write(name, shape, values))?;
        let (base, lora) = (product(&x, &w, i, o), lora_reference(case, &x, &ids, &gates, &a, &b));
        let sum: Vec<f64> = base.iter().zip(&lora).map(|(base, lora)| base + lora).collect();
        [("ref_base", &base), ("ref_lora", &lora), ("ref_layer", &sum)]
            .iter()
            .try_for_each(|(name, values)| reference(name, t, values))?;
    }
    std::fs::write(&last, "").map_err(|why| format!("{}: {why}", last.display()))
}

/// Uniform values of a standard deviation.
fn values(rng: &mut Rng, len: usize, deviation: f32) -> Vec<f32> {
    (0..len).map(|_| rng.value(UNIFORM * deviation)).collect()
}

fn permutation(rng: &mut Rng, len: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..len).collect();
    (1..len).rev().for_each(|i| all.swap(i, rng.below(i + 1)));
    all
}

/// The router's choices; rows of x whose choice is close are drawn anew, so that every arithmetic chooses the same.
fn choose(case: &Case, rng: &mut Rng, x: &mut [f32], router: &[f32], bias: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let Case { in_features, experts, top_k, .. } = *case;
    let (mut ids, mut gates) = (Vec::new(), Vec::new());
    for row in x.chunks_mut(in_features) {
        let order = loop {
            let x = wide(row);
            let score = |e: usize| dot(&x, &router[e * in_features..]) + f64::from(bias[e]);
            let mut order: Vec<(usize, f64)> = (0..experts).map(|e| (e, score(e))).collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1));
            if order.windows(2).take(top_k).all(|pair| pair[0].1 - pair[1].1 > GAP) {
                break order;
            }
            row.iter_mut().for_each(|x| *x = rng.value(UNIFORM));
        };
        let weights: Vec<f64> = order[..top_k].iter().map(|(_, score)| (score - order[0].1).exp()).collect();
        let sum: f64 = weights.iter().sum();
        ids.extend(order[..top_k].iter().map(|&(e, _)| e as i32));
        gates.extend(weights.iter().map(|weight| (weight / sum) as f32));
    }
    (ids, gates)
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}

/// As long as `a`.
fn dot(a: &[f64], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0f64; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b[..a.len()].chunks_exact(LANES));
    let rest: f64 =
        a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, &b)| a * f64::from(b)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        (0..LANES).for_each(|lane| sums[lane] += a[lane] * f64::from(b[lane]));
    }
    sums.iter().sum::<f64>() + rest
}

/// `x w^T` in float64, `w [columns, inner]`.
fn product(x: &[f32], w: &[f32], inner: usize, columns: usize) -> Vec<f64> {
    const TOGETHER: usize = 8;
    let x: Vec<Vec<f64>> = x.chunks(inner).map(wide).collect();
    // Some columns at a time stay in a cache while the rows go by.
    let blocks: Vec<Vec<f64>> = w
        .par_chunks(TOGETHER * inner)
        .map(|w| x.iter().flat_map(|x| w.chunks(inner).map(|w| dot(x, w))).collect())
        .collect();
    let mut y = vec![0.0; x.len() * columns];
    for (block, values) in blocks.iter().enumerate() {
        let width = values.len() / x.len();
        for (row, values) in values.chunks(width).enumerate() {
            y[row * columns + block * TOGETHER..][..width].copy_from_slice(values);
        }
    }
    y
}

fn lora_reference(case: &Case, x: &[f32], ids: &[i32], gates: &[f32], a: &[f32], b: &[f32]) -> Vec<f64> {
    let Case { in_features: i, out_features: o, top_k: k, rank: r, scale, .. } = *case;
    let mut y = vec![0.0; case.tokens * o];
    y.par_chunks_mut(o).enumerate().for_each(|(t, y)| {
        let x = wide(&x[t * i..][..i]);
        for (&id, &gate) in ids[t * k..][..k].iter().zip(&gates[t * k..]) {
            let (a, b) = (&a[id as usize * r * i..], &b[id as usize * o * r..]);
            let factor = f64::from(gate) * f64::from(scale);
            let h: Vec<f64> = (0..r).map(|row| factor * dot(&x, &a[row * i..])).collect();
            y.iter_mut().zip(b.chunks(r)).for_each(|(y, b)| *y += dot(&h, b));
        }
    });
    y
}

fn grouped_reference(case: &Case, x: &[f32], ids: &[i32], w: &[f32]) -> Vec<f64> {
    let Case { in_features: i, out_features: o, top_k: k, .. } = *case;
    let mut y = vec![0.0; case.routes() * o];
    for e in 0..case.experts {
        let routes: Vec<usize> = (0..case.routes()).filter(|&route| ids[route] as usize == e).collect();
        if routes.is_empty() {
            continue;
        }
        let rows: Vec<f32> = routes.iter().flat_map(|route| &x[route / k * i..][..i]).copied().collect();
        let part = product(&rows, &w[e * o * i..][..o * i], i, o);
        for (&route, row) in routes.iter().zip(part.chunks(o)) {
            y[route * o..][..o].copy_from_slice(row);
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::Arrays;

    #[test]
    fn the_cases_have_names_of_their_own_and_enough_copies() {
        let cases = all();
        let ids: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.id.as_str()).collect();
        assert_eq!((cases.len(), ids.len()), (17, 17));
        for case in &cases {
            case.check().unwrap();
            let weights =
                case.in_features * case.out_features * if case.rank == 0 { case.experts } else { 1 };
            assert!((4 * weights * case.copies.w) as f64 >= ALL_COPIES, "{}", case.id);
        }
        assert!(ids.contains("T512_2048x2048_E64k2r16_zipf") && ids.contains("GG_T64_2048x1408_E16k2"));
    }

    #[test]
    fn files_hold_the_formulas() {
        let folder = tempfile::tempdir().unwrap();
        for case in [
            layer((3, 5, 19), (4, 2, 3), "zipf"),
            layer((4, 5, 6), (4, 1, 2), "own"),
            grouped(3, 5, 19, (4, 2)),
        ] {
            make(&case, folder.path()).unwrap();
            let arrays = Arrays::read(&case, folder.path()).unwrap();
            for op in &case.ops {
                let expected = npy::read::<f64>(&case.file(folder.path(), reference(op))).unwrap();
                assert_eq!(expected.shape, [case.rows(op), case.out_features]);
                for (at, value) in expected.values.iter().enumerate() {
                    let (row, column) = (at / case.out_features, at % case.out_features);
                    let plain = plain(&case, &arrays, op, row, column);
                    assert!((value - plain).abs() < 1e-9, "{} {op} {row} {column}: {value} {plain}", case.id);
                }
            }
        }
    }

    /// One number, by the formula.
    fn plain(case: &Case, arrays: &Arrays, op: &str, row: usize, column: usize) -> f64 {
        let Case { in_features: n, out_features: o, top_k: k, rank: r, experts, .. } = *case;
        let x = |t: usize, i: usize| f64::from(arrays.x[t * n + i]);
        let w = |row: usize, i: usize| f64::from(arrays.w[row * n + i]);
        if op == "ggemm" {
            let expert = arrays.ids[row] as usize;
            return (0..n).map(|i| x(row / k, i) * w(expert * o + column, i)).sum();
        }
        let base: f64 = (0..n).map(|i| x(row, i) * w(column, i)).sum();
        let mut lora = 0.0;
        let mut sum_of_gates = 0.0;
        for route in row * k..(row + 1) * k {
            let (e, gate) = (arrays.ids[route] as usize, f64::from(arrays.gates[route]));
            assert!(e < experts);
            sum_of_gates += gate;
            for rank in 0..r {
                let h: f64 = (0..n).map(|i| f64::from(arrays.a[(e * r + rank) * n + i]) * x(row, i)).sum();
                lora += gate * f64::from(case.scale) * h * f64::from(arrays.b[(e * o + column) * r + rank]);
            }
        }
        assert!((sum_of_gates - 1.0).abs() < 1e-6);
        match op {
            "base" => base,
            "lora" => lora,
            _ => base + lora,
        }
    }
}
