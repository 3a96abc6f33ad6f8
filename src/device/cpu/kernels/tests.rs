//! Every level and element on exact inputs.

use super::dot::{Matrix, dot_rows};
use super::pack::pack_rows;
use super::ranks::{self, Factor, padded, rank_products};
use super::routes::{Adapter, Panel, Place, ROUTES, Routes, Tile, add_routes};
use super::terms::{Terms, add_terms, store_row};
use crate::device::cpu::pool::B_COLUMNS;
use crate::device::cpu::simd::Level;
use crate::element::Element;
use half::{bf16, f16};

/// Multiples of 1/32 below 1: every partial sum of the tests is exact in f32.
pub(crate) fn values<E: Element>(seed: u32, len: usize) -> Vec<E> {
    (0..len as u32).map(|i| E::from_f32(((i * 37 + seed * 101) % 64) as f32 / 32.0 - 1.0)).collect()
}

fn dots<X: Element, W: Element>() {
    for level in Level::all() {
        for (m, n, k) in
            [(1, 1, 1), (1, 9, 7), (3, 4, 16), (5, 5, 33), (4, 13, 64), (9, 3, 100), (5, 9, 2050)]
        {
            let (x, w): (Vec<X>, Vec<W>) = (values(1, m * k), values(2, n * k));
            let (xs, ws): (Vec<&[X]>, Vec<&[W]>) = (x.chunks(k).collect(), w.chunks(k).collect());
            let mut out = vec![f32::NAN; m * n];
            dot_rows(level, &xs, Matrix { data: &w, stride: k }, 0..n, &mut out);
            // The same with gaps between the rows, which lie two places on.
            let mut gaps = vec![W::from_f32(f32::NAN); (n + 2) * (k + 3)];
            ws.iter().enumerate().for_each(|(i, w)| gaps[(i + 2) * (k + 3)..][..k].copy_from_slice(w));
            let mut again = out.clone();
            dot_rows(level, &xs, Matrix { data: &gaps, stride: k + 3 }, 2..n + 2, &mut again);
            assert_eq!(out, again, "{} {m}x{n}x{k}", level.name());
            for i in 0..m {
                for j in 0..n {
                    let exact: f32 = (0..k).map(|c| xs[i][c].to_f32() * ws[j][c].to_f32()).sum();
                    assert_eq!(out[i * n + j], exact, "{} {m}x{n}x{k} [{i}, {j}]", level.name());
                }
            }
        }
    }
}

#[test]
fn dots_are_exact_on_exact_inputs() {
    dots::<f32, f32>();
    dots::<f32, f16>();
    dots::<f16, bf16>();
    dots::<bf16, bf16>();
}

fn adapters<A: Element>() {
    for level in Level::all() {
        for rank in [1, 3, 4, 8, 15, 16, 17, 24, 33, 64, 70] {
            for (rows, inner) in [(1, 1), (2, 7), (3, ranks::BLOCK), (5, ranks::BLOCK + 9), (9, 300)] {
                let (x, a): (Vec<f32>, Vec<A>) = (values(1, rows * inner), values(2, inner * rank));
                let xs: Vec<&[f32]> = x.chunks(inner).collect();
                let (stride, blocks) = (padded(level, rank) + 3, inner.div_ceil(ranks::BLOCK));
                let factor = Factor { data: a[..].into(), inner, rank };
                let mut out = vec![f32::NAN; rows * stride];
                rank_products(level, &xs, factor, 0..blocks, &mut out, stride);
                for (m, x) in xs.iter().enumerate() {
                    for r in 0..rank {
                        let exact: f32 = (0..inner).map(|k| x[k] * a[k * rank + r].to_f32()).sum();
                        let case = format!("{} {rows}x{inner}x{rank} [{m}, {r}]", level.name());
                        assert_eq!(out[m * stride + r], exact, "{case}");
                        assert!(out[m * stride + stride - 3..][..3].iter().all(|v| v.is_nan()), "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_with_adapters_are_exact_on_exact_inputs() {
    adapters::<f32>();
    adapters::<f16>();
    adapters::<bf16>();
}

fn routes<B: Element>() {
    for level in Level::all() {
        for (rank, column, columns) in
            [(1, 0, 1), (3, 5, 31), (16, 0, 64), (8, 17, 47), (2, 63, 1), (5, 32, 32)]
        {
            for count in 1..=ROUTES {
                let (b_row, b): (_, Vec<B>) = (2, values(2, (rank + 2) * B_COLUMNS));
                // Rows 3, 5, 7, .. of which the place has those from 4 to 9.
                let rows: Vec<u32> = (0..count as u32).map(|i| 3 + 2 * i).collect();
                let h: Vec<f32> = values(3, rank * count);
                let adapters = vec![Adapter { b_row, rank, tiles: 0..1 }];
                let routes = Routes { adapters, tiles: vec![Tile { routes: 0..count, h: 0 }], rows, h };
                let (stride, start) = (columns + 3, values::<f32>(4, 6 * (columns + 3)));
                let mut c = start.clone();
                let place = Place { start: c.as_mut_ptr(), stride, rows: 4..10 };
                let panel = Panel { b: b[..].into(), column, columns };
                // SAFETY: c has six rows of so many columns.
                unsafe { add_routes(level, &routes, panel, &place) };
                for (at, (&got, &old)) in c.iter().zip(&start).enumerate() {
                    let (row, j) = (4 + at / stride, at % stride);
                    let route = routes.rows.iter().position(|&r| r as usize == row).filter(|_| j < columns);
                    let term = |r: usize, n: usize| {
                        routes.h[r * count + n] * b[(b_row + r) * B_COLUMNS + column + j].to_f32()
                    };
                    let sum = route.map_or(0.0, |n| (0..rank).map(|r| term(r, n)).sum());
                    assert_eq!(
                        got,
                        old + sum,
                        "{} rank {rank}, {columns} columns, [{row}, {j}]",
                        level.name()
                    );
                }
            }
        }
    }
}

#[test]
fn sums_of_routes_are_exact_on_exact_inputs() {
    routes::<f32>();
    routes::<f16>();
    routes::<bf16>();
}

#[test]
fn sums_of_rows_are_exact_on_exact_inputs() {
    for level in Level::all() {
        for (rows, width) in [(0, 3), (1, 1), (3, 15), (2, 16), (5, 17), (4, 127), (9, 128), (3, 300)] {
            let stride = width + 5;
            let b: Vec<f32> = values(2, (rows + 1) * stride);
            let list: Vec<(f32, u32)> = (0..rows).map(|r| (r as f32 - 1.5, (rows - r) as u32)).collect();
            let mut c: Vec<f32> = values(3, width);
            add_terms(level, Terms { list: &list, rows: &b, stride }, &mut c);
            for (j, &got) in c.iter().enumerate() {
                let term = |&(f, r): &(f32, u32)| f * b[r as usize * stride + j];
                let exact = values::<f32>(3, width)[j] + list.iter().map(term).sum::<f32>();
                assert_eq!(got, exact, "{} {rows} terms [{j}] of {width}", level.name());
            }
        }
    }
}

fn rounding<Y: Element>() {
    // Ties, values beside them, the ends of the ranges, and what is not finite.
    let mut c: Vec<f32> =
        vec![0.0, -0.0, 1e30, -1e30, 65519.9, 65520.0, 1e-8, 6e-8, 1e-40, 3.3e38, f32::INFINITY];
    c.extend((0..2000u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x0800)));
    c.extend((0..2000u32).map(|i| f32::from_bits(0x3880_0000 + i * 0x1000 + i % 3)));
    for level in Level::all() {
        let mut y = vec![Y::zeroed(); c.len()];
        store_row(level, &c, None, &mut y);
        for (&c, &y) in c.iter().zip(&y) {
            assert_eq!(y, Y::from_f32(c), "{} {c:e}", level.name());
        }
        let bias: Vec<Y> = values(4, c.len());
        store_row(level, &c, Some(&bias), &mut y);
        for ((&c, &b), &y) in c.iter().zip(&bias).zip(&y) {
            assert_eq!(y, Y::from_f32(c + b.to_f32()), "{} {c:e} + bias", level.name());
        }
        let mut nan = [Y::zeroed(); 3];
        store_row(level, &[f32::NAN, f32::from_bits(0x7f80_0001), -f32::NAN], None, &mut nan);
        assert!(nan.iter().all(|y| y.to_f32().is_nan()), "{}", level.name());
    }
}

#[test]
fn rounding_is_the_elements_own() {
    rounding::<f32>();
    rounding::<f16>();
    rounding::<bf16>();
}

/// All 65,536 patterns, and of f32 one in 8,191: every exponent, both signs, what is not finite.
fn conversions<E: Element>(bits: impl Fn(u16) -> E) {
    let halves: Vec<E> = (0..=u16::MAX).map(bits).collect();
    let words: Vec<f32> = (0..1 << 19).map(|i| f32::from_bits(i * 8191)).collect();
    for level in Level::all() {
        let mut wide = vec![0.0; halves.len()];
        pack_rows(level, &[&halves], &mut wide);
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        for (half, &wide) in halves.iter().zip(&wide) {
            assert!(same(half.to_f32(), wide), "{} {half:?} widened to {wide:e}", level.name());
        }
        let mut rounded = vec![E::zeroed(); words.len()];
        store_row(level, &words, None, &mut rounded);
        for (&word, half) in words.iter().zip(&rounded) {
            let want = E::from_f32(word).to_f32();
            assert!(same(half.to_f32(), want), "{} {word:e} rounded to {half:?}", level.name());
        }
    }
}

#[test]
fn every_half_is_widened_and_every_exponent_rounded() {
    conversions(f16::from_bits);
    conversions(bf16::from_bits);
}

/// Else the tests above run on the portable level alone, and pass.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_is_found() {
    assert_eq!(Level::detect(), Level::Neon);
}

#[test]
fn packed_rows_are_the_rows() {
    for level in Level::all() {
        for (m, k) in (1..=14).flat_map(|m| [1, 15, 16, 33].map(|k| (m, k))) {
            let x: Vec<f16> = values(1, m * k);
            let rows: Vec<&[f16]> = x.chunks(k).collect();
            let mut out = vec![f32::NAN; m * k];
            pack_rows(level, &rows, &mut out);
            for (i, &v) in out.iter().enumerate() {
                assert_eq!(v, rows[i % m][i / m].to_f32(), "{} {m}x{k}", level.name());
            }
        }
    }
}

#[test]
fn deviations_are_those_of_the_formula() {
    for level in Level::all() {
        for n in [0, 1, 2, 15, 63, 64, 65, 200, 4099] {
            let row: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 3.0 + 5.0).collect();
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / (n.max(1) as f64);
            let squares = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
            let want = (squares / n.max(1) as f64 + 1e-5).sqrt();
            let got = f64::from(super::deviation::deviation(level, &row, 1e-5));
            assert!((got - want).abs() <= 2e-6 * want, "{} {n}: {got} {want}", level.name());
        }
    }
}
