//! The judge: every row and every element against the definition, every other byte against what it was.
//!
//! One element is a sum of `length` terms in f32. Every addition, in whatever order, rounds by at most
//! u = 2^-24 of a partial sum, and a partial sum is at most `terms`, the sum of the terms' magnitudes. So the
//! error is at most `length * u * terms` for certain, and at most `8 * sqrt(length) * u * terms` but for one
//! element in 10^10 (Higham and Mary 2019, rounding errors of mean 0, lambda = 8). The smaller of the two is the
//! limit, plus `EXTRA_ROUNDINGS` for factors and the definition's own rounding, plus one unit in the last place
//! of the output's element for each rounding to it. At 4096 terms that is 1/8 of what one lost term costs.
//!
//! A row's relative L2 has a limit of its own, [`row_limit`], for errors that hide below the elements' limits. It holds
//! where the row is about as large as its terms let expect; one whose terms cancel, as those of one expert of rank 1 chosen
//! again and again may in all columns at once, keeps errors of its terms' size: `EXTRA_ROUNDINGS` of `terms` come on top.
//!
//! A device that rounds h on its way into expand, as tensor cores do, says by how much at most; each expert's term may then
//! be off by that share of itself, and no other term.

use crate::guarded::{Guarded, Tensor};
use bytemuck::bytes_of;
use molora::element::{Element, ElementType};
use serde::Serialize;

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Roundings of one term beyond its place in the sum: weight, scaling, product, and the definition's result.
const EXTRA_ROUNDINGS: f64 = 5.0;

/// Rows at least this wide are also judged by their relative L2: narrower ones may cancel to nearly 0.
const WIDE: usize = 8;

/// What must come out, dense `[rows, width]`.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub width: usize,
    /// The definition's values, rounded to f32; NaN: not written.
    pub want: Vec<f32>,
    /// Sum of the magnitudes of each element's terms.
    pub terms: Vec<f32>,
    /// Terms of an element.
    pub length: usize,
    /// What may be rounded to the output's element on the way, as the base product is when the experts are added
    /// to it in a second step; empty where nothing is.
    pub between: Vec<f32>,
    /// What rounding h may cost each element: the rounding's relative error times the magnitudes of the experts' terms
    /// alone; empty where h is not rounded.
    pub h_rounding: Vec<f32>,
}

/// The largest error of a row or an element.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Verdict {
    /// Elements judged.
    pub elements: usize,
    /// The row with the largest relative L2 error, and the error.
    pub worst_row: (usize, f64),
    /// The element with the largest error as a share of its limit, and the share.
    pub worst_element: (usize, usize, f64),
}

impl Verdict {
    /// The worse of both in each respect.
    pub fn worse(self, other: Self) -> Self {
        let row = if other.worst_row.1 > self.worst_row.1 { other.worst_row } else { self.worst_row };
        let element = if other.worst_element.2 > self.worst_element.2 {
            other.worst_element
        } else {
            self.worst_element
        };
        Self { elements: self.elements + other.elements, worst_row: row, worst_element: element }
    }
}

/// Relative error in f32 of a sum of `length` terms, as a share of the sum of magnitudes.
pub fn sum_error(length: usize) -> f64 {
    let length = length as f64;
    (length.min(8.0 * length.sqrt()) + EXTRA_ROUNDINGS) * U
}

/// The largest relative L2 error of a row that one rounding to the element explains.
pub fn row_limit(element: ElementType) -> f64 {
    match element {
        ElementType::F32 => 1e-5,
        ElementType::F16 => 1.0 / 1024.0,
        ElementType::Bf16 => 1.0 / 128.0,
    }
}

/// The distance from `value` to the next number of the element type; 0 for f32, whose rounding is in the sum.
fn unit_in_last_place(element: ElementType, value: f64) -> f64 {
    let (bits, smallest) = match element {
        ElementType::F32 => return 0.0,
        ElementType::F16 => (10, -14),
        ElementType::Bf16 => (7, -126),
    };
    let exponent = if value == 0.0 { smallest } else { (value.abs().log2().floor() as i32).max(smallest) };
    (f64::from(exponent) - f64::from(bits)).exp2()
}

/// Compares a call's output with what must come out; `start` is the output before the call.
pub fn compare(expected: &Expected, start: &Tensor, got: &Tensor) -> Result<Verdict, String> {
    match (start, got) {
        (Tensor::F32(start), Tensor::F32(got)) => compare_rows(expected, start, got),
        (Tensor::F16(start), Tensor::F16(got)) => compare_rows(expected, start, got),
        (Tensor::Bf16(start), Tensor::Bf16(got)) => compare_rows(expected, start, got),
        _ => Err("the output changed its element type".into()),
    }
}

/// See [`compare`].
pub fn compare_rows<T: Element>(
    expected: &Expected,
    start: &Guarded<T>,
    got: &Guarded<T>,
) -> Result<Verdict, String> {
    let shape = |g: &Guarded<T>| (g.rows, g.width, g.stride, g.all.len());
    if (expected.rows, expected.width) != (got.rows, got.width) || shape(start) != shape(got) {
        return Err(format!("expected {} x {}, got {:?}", expected.rows, expected.width, shape(got)));
    }
    untouched(expected, start, got)?;
    let mut verdict = Verdict::default();
    let mut wrong = Vec::new();
    for row in 0..expected.rows {
        let error = compare_row(expected, row, got, &mut verdict, &mut wrong);
        let norms = expected.norms(row);
        let relative = if error == 0.0 { 0.0 } else { error / norms.want };
        if norms.elements >= WIDE && norms.want > 0.0 {
            if exceeds(relative, verdict.worst_row.1) {
                verdict.worst_row = (row, relative);
            }
            let limit = norms.limit(T::TYPE, expected.width);
            if exceeds(relative, limit) && wrong.is_empty() {
                wrong.push(format!("row {row}: relative L2 error {relative:.2e}, limit {limit:.1e}"));
            }
        }
    }
    match wrong.first() {
        None => Ok(verdict),
        Some(first) => Err(format!(
            "{first}; {} wrong of {}; worst row {} with relative L2 error {:.2e}",
            wrong.len(),
            verdict.elements,
            verdict.worst_row.0,
            verdict.worst_row.1
        )),
    }
}

/// NaN is worse than every limit.
pub(crate) fn exceeds(error: f64, limit: f64) -> bool {
    error.is_nan() || error > limit
}

/// L2 norms over one row's elements.
struct Norms {
    elements: usize,
    want: f64,
    terms: f64,
    between: f64,
    h_rounding: f64,
}

impl Norms {
    /// The largest relative L2 error of such a row.
    fn limit(&self, element: ElementType, width: usize) -> f64 {
        // The second part is for numbers below the element's normal ones.
        let smallest = unit_in_last_place(element, 0.0) * (width as f64).sqrt();
        let roundings = EXTRA_ROUNDINGS * U * self.terms;
        row_limit(element) * (1.0 + self.between / self.want)
            + (smallest + roundings + self.h_rounding) / self.want
    }
}

impl Expected {
    /// Of the elements of a row that are written.
    fn norms(&self, row: usize) -> Norms {
        let written = || (row * self.width..(row + 1) * self.width).filter(|&i| !self.want[i].is_nan());
        let norm = |values: &[f32]| {
            let squares = written().map(|i| values.get(i).map_or(0.0, |&v| f64::from(v).powi(2)));
            squares.sum::<f64>().sqrt()
        };
        Norms {
            elements: written().count(),
            want: norm(&self.want),
            terms: norm(&self.terms),
            between: norm(&self.between),
            h_rounding: norm(&self.h_rounding),
        }
    }

    /// The largest error of element i in a device's result of about `size`.
    fn element_limit(&self, i: usize, element: ElementType, size: f64) -> f64 {
        let between = self.between.get(i).map_or(0.0, |&v| f64::from(v));
        let mut limit = sum_error(self.length) * f64::from(self.terms[i]) + unit_in_last_place(element, size);
        if !self.between.is_empty() {
            limit += unit_in_last_place(element, between);
        }
        limit + self.h_rounding.get(i).map_or(0.0, |&v| f64::from(v))
    }

    /// For judges elsewhere, who have no more than numbers: the largest error of every element, and the largest relative L2
    /// error of every row, infinite where rows are not judged. Where h is not rounded, nor y between.
    pub fn limits(&self, element: ElementType) -> (Vec<f32>, Vec<f32>) {
        let want = |i: usize| f64::from(self.want[i]).abs();
        // A result may be larger than what was asked for, and its last place with it.
        let limit = |i: usize| self.element_limit(i, element, want(i) * (1.0 + row_limit(element))) as f32;
        let row = |row: usize| {
            let norms = self.norms(row);
            let judged = norms.elements >= WIDE && norms.want > 0.0;
            if judged { norms.limit(element, self.width) as f32 } else { f32::INFINITY }
        };
        ((0..self.want.len()).map(limit).collect(), (0..self.rows).map(row).collect())
    }
}

/// Judges a row's elements, and says the L2 norm of their errors.
fn compare_row<T: Element>(
    expected: &Expected,
    row: usize,
    got: &Guarded<T>,
    verdict: &mut Verdict,
    wrong: &mut Vec<String>,
) -> f64 {
    let mut squares = 0.0;
    for column in 0..expected.width {
        let i = row * expected.width + column;
        let (want, got) = (f64::from(expected.want[i]), f64::from(got.at(row, column).to_f32()));
        if want.is_nan() {
            continue;
        }
        let error = (got - want).abs();
        squares += error * error;
        verdict.elements += 1;
        let limit = expected.element_limit(i, T::TYPE, want.abs().max(got.abs()));
        let share = if error == 0.0 { 0.0 } else { error / limit };
        if exceeds(share, verdict.worst_element.2) {
            verdict.worst_element = (row, column, share);
        }
        if exceeds(share, 1.0) {
            wrong.push(format!(
                "[{row}, {column}]: expected {want}, got {got}, error {error:.2e}, limit {limit:.2e}"
            ));
        }
    }
    squares.sqrt()
}

/// Guards, padding and elements that the call does not own hold the bytes that they held.
fn untouched<T: Element>(expected: &Expected, start: &Guarded<T>, got: &Guarded<T>) -> Result<(), String> {
    for (i, (before, after)) in start.all.iter().zip(&got.all).enumerate() {
        let what = match got.place(i) {
            Some((row, column)) if expected.want[row * expected.width + column].is_nan() => {
                format!("[{row}, {column}], which belongs to no route,")
            }
            Some(_) => continue,
            None if i < got.first => format!("the canary {} before the first row", got.first - i),
            None if i >= got.first + got.len() => format!("the canary {} behind the last row", i - got.len()),
            None => {
                let (row, column) = ((i - got.first) / got.stride, (i - got.first) % got.stride);
                format!("the padding [{row}, {column}]")
            }
        };
        if bytes_of(before) != bytes_of(after) {
            return Err(format!("{what} was overwritten with {after:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    const SHAPE: (usize, usize, usize) = (6, 9, 11);

    fn value(row: usize, column: usize) -> f32 {
        (row * 10 + column) as f32 / 64.0 + 0.5
    }

    fn expected() -> Expected {
        let want: Vec<f32> = (0..SHAPE.0 * SHAPE.1).map(|i| value(i / SHAPE.1, i % SHAPE.1)).collect();
        Expected {
            rows: SHAPE.0,
            width: SHAPE.1,
            terms: want.clone(),
            want,
            length: 16,
            between: Vec::new(),
            h_rounding: Vec::new(),
        }
    }

    /// Compares a right answer after `damage`.
    fn judge<T: Element>(damage: impl Fn(&mut Guarded<T>)) -> Result<Verdict, String> {
        let start = Guarded::<T>::output(SHAPE, |_, _| T::from_f32(f32::NAN));
        let mut got = Guarded::<T>::output(SHAPE, |row, column| T::from_f32(value(row, column)));
        damage(&mut got);
        compare_rows(&expected(), &start, &got)
    }

    fn says<T: Element>(damage: impl Fn(&mut Guarded<T>), what: &str) {
        let message = judge(damage).expect_err("a wrong answer passed");
        assert!(message.contains(what), "{message}");
    }

    fn every_damage_is_found<T: Element>() {
        let at = |row: usize, column: usize| GUARD + row * SHAPE.2 + column;
        judge::<T>(|_| ()).expect("the right answer");
        let near = |g: &mut Guarded<T>| {
            let i = at(3, 4);
            let step = if T::TYPE == ElementType::F32 { 4.0 * U } else { row_limit(T::TYPE) };
            g.all[i] = T::from_f32(g.all[i].to_f32() * (1.0 + step as f32));
        };
        assert!(judge::<T>(near).expect("one rounding").worst_element.2 > 0.0);
        says::<T>(|g| g.all[at(3, 4)] = T::from_f32(value(3, 4) * 1.05), "[3, 4]: expected");
        says::<T>(|g| (0..SHAPE.1).for_each(|c| g.all[at(2, c)] = T::from_f32(0.0)), "worst row 2");
        says::<T>(|g| (0..SHAPE.1).for_each(|c| g.all.swap(at(1, c), at(4, c))), "18 wrong");
        says::<T>(|g| g.all[at(5, 0)] = T::from_f32(f32::NAN), "[5, 0]: expected");
        says::<T>(|g| g.all[at(5, 0)] = T::from_f32(f32::INFINITY), "[5, 0]: expected");
        says::<T>(|g| g.all[GUARD - 1] = T::from_f32(0.0), "canary 1 before");
        says::<T>(|g| *g.all.last_mut().unwrap() = T::from_f32(0.0), "behind the last row");
        says::<T>(|g| g.all[at(2, 10)] = T::from_f32(0.0), "padding [2, 10]");
    }

    #[test]
    fn every_damage_is_found_in_every_element() {
        every_damage_is_found::<f32>();
        every_damage_is_found::<f16>();
        every_damage_is_found::<bf16>();
    }

    #[test]
    fn elements_without_a_route_stay_as_they_were() {
        let mut expected = expected();
        expected.want[9] = f32::NAN;
        let start = Guarded::<f32>::output(SHAPE, |_, _| f32::NAN);
        let mut got =
            Guarded::<f32>::output(SHAPE, |r, c| if (r, c) == (1, 0) { f32::NAN } else { value(r, c) });
        compare_rows(&expected, &start, &got).expect("left alone");
        let i = got.first + SHAPE.2;
        got.all[i] = 0.0;
        assert!(compare_rows(&expected, &start, &got).unwrap_err().contains("belongs to no route"));
    }

    /// One element off by a share of its size, judged with a rounding of h by 2^-8 and without.
    #[test]
    fn a_rounded_h_widens_a_limit_by_its_rounding_and_no_more() {
        let start = Guarded::<f32>::output(SHAPE, |_, _| f32::NAN);
        let off = |share: f32| {
            Guarded::<f32>::output(SHAPE, |r, c| {
                value(r, c) * if (r, c) == (3, 4) { 1.0 + share } else { 1.0 }
            })
        };
        let rounded =
            Expected { h_rounding: expected().want.iter().map(|w| w / 256.0).collect(), ..expected() };
        for (share, strict, wide) in [
            (1e-7, true, true),
            (0.9 / 256.0, false, true),
            (1.1 / 256.0, false, false),
            (0.05, false, false),
        ] {
            // One element alone: the row's own limit is another test's.
            let judge = |expected: &Expected| {
                compare_rows(expected, &start, &off(share)).map_err(|why| why.starts_with("[3, 4]")).err()
            };
            assert_eq!(judge(&expected()) != Some(true), strict, "{share}");
            assert_eq!(judge(&rounded) != Some(true), wide, "{share}");
        }
        // An element without an expert's term stays as strict as it was.
        let mut partly = rounded;
        partly.h_rounding[3 * SHAPE.1 + 4] = 0.0;
        assert!(compare_rows(&partly, &start, &off(0.5 / 256.0)).unwrap_err().starts_with("[3, 4]"));
    }

    /// A whole row off by one rounding of its h, as where two routes of one token nearly cancel.
    #[test]
    fn a_rounded_h_widens_a_rows_limit_by_its_rounding_and_no_more() {
        let start = Guarded::<f32>::output(SHAPE, |_, _| f32::NAN);
        let off = |share: f32| {
            Guarded::<f32>::output(SHAPE, |r, c| value(r, c) * if r == 2 { 1.0 + share } else { 1.0 })
        };
        let rounded = |row: usize| Expected {
            h_rounding: (0..SHAPE.0 * SHAPE.1)
                .map(|i| if i / SHAPE.1 == row { value(row, i % SHAPE.1) / 256.0 } else { 0.0 })
                .collect(),
            ..expected()
        };
        for (share, right) in [(0.9 / 256.0, true), (1.1 / 256.0, false), (-1.0, false)] {
            assert_eq!(compare_rows(&rounded(2), &start, &off(share)).is_ok(), right, "{share}");
            assert!(compare_rows(&rounded(3), &start, &off(share)).is_err(), "another row's rounding");
            assert!(compare_rows(&expected(), &start, &off(share)).is_err());
        }
    }

    /// The terms of one row are `cancels` times what is left of them, and all its elements off by `share` of that.
    #[test]
    fn a_row_whose_terms_cancel_may_err_by_roundings_of_its_terms_and_no_more() {
        let start = Guarded::<f32>::output(SHAPE, |_, _| f32::NAN);
        let right = |cancels: f32, share: f64| {
            let mut expected = expected();
            expected.terms[2 * SHAPE.1..3 * SHAPE.1].iter_mut().for_each(|v| *v *= cancels);
            let got = Guarded::<f32>::output(SHAPE, |r, c| {
                value(r, c) * if r == 2 { 1.0 + share as f32 } else { 1.0 }
            });
            let judged = compare_rows(&expected, &start, &got);
            judged.map_err(|why| assert!(why.starts_with("row 2: relative L2 error"), "{why}")).is_ok()
        };
        let roundings = |cancels: f32| 1e-5 + EXTRA_ROUNDINGS * U * f64::from(cancels);
        assert!(right(1000.0, 0.95 * roundings(1000.0)), "four roundings of a term");
        assert!(!right(1000.0, 1.05 * roundings(1000.0)), "within the elements' limits, and a row off");
        assert!(!right(800.0, 0.95 * roundings(1000.0)), "as far off where the terms cancel less");
    }

    #[test]
    fn a_lost_row_among_thousands_is_found() {
        let shape = (5000, 8, 8);
        let expected = Expected {
            rows: 5000,
            width: 8,
            want: vec![1.0; 40000],
            terms: vec![1.0; 40000],
            length: 64,
            between: Vec::new(),
            h_rounding: Vec::new(),
        };
        let start = Guarded::<f32>::output(shape, |_, _| f32::NAN);
        let got = Guarded::<f32>::output(shape, |row, _| if row == 4321 { 0.0 } else { 1.0 });
        let message = compare_rows(&expected, &start, &got).unwrap_err();
        assert!(message.contains("worst row 4321 with relative L2 error 1.00"), "{message}");
    }

    #[test]
    fn last_places() {
        assert_eq!(unit_in_last_place(ElementType::F16, 1.5), f64::from(f16::EPSILON.to_f32()));
        assert_eq!(unit_in_last_place(ElementType::Bf16, -1.0), f64::from(bf16::EPSILON.to_f32()));
        assert_eq!(unit_in_last_place(ElementType::F16, 0.0), f64::from(f16::from_bits(1).to_f32()));
    }

    use crate::guarded::GUARD;
}
