//! Medians, quartiles and intervals.

/// Sorted values.
#[derive(Debug, Clone, Default)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// From values in any order.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which a share of all lies, between two by their distance; not a number where there is none.
    pub fn at(&self, share: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        let place = share * last as f64;
        let (low, high) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }

    /// The middle.
    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The median's 95 % interval by order statistics; none below 6 values, whose ends are not that sure.
    pub fn interval(&self) -> Option<[f64; 2]> {
        let n = self.0.len();
        // Ranks r and n + 1 - r hold the median between them but for 2 P(Binomial(n, 1/2) < r).
        let (mut below, mut chance, mut rank) = (0.0, 0.5f64.powi(n as i32), 0);
        while n < 1000 && 2.0 * (below + chance) <= 0.05 {
            below += chance;
            chance *= (n - rank) as f64 / (rank + 1) as f64;
            rank += 1;
        }
        if n >= 1000 {
            rank = (n as f64 / 2.0 - 0.98 * (n as f64).sqrt()) as usize;
        }
        (rank > 0).then(|| [self.0[rank - 1], self.0[n - rank]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_and_intervals() {
        let sorted = Sorted::new((1..=5).rev().map(f64::from));
        assert_eq!((sorted.at(0.25), sorted.median(), sorted.at(0.75)), (2.0, 3.0, 4.0));
        assert_eq!(Sorted::new([1.0, 2.0]).median(), 1.5);
        assert!(Sorted::new([]).median().is_nan());
        // The tables' ranks: none of 5, 1 of 6, 10 of 30, 40 of 100.
        let ranks = |n: u32| Sorted::new((1..=n).map(f64::from)).interval();
        assert_eq!(ranks(5), None);
        assert_eq!(ranks(6), Some([1.0, 6.0]));
        assert_eq!(ranks(30), Some([10.0, 21.0]));
        assert_eq!(ranks(100), Some([40.0, 61.0]));
        assert_eq!(ranks(2000).map(|ends| ends[0]), Some(956.0));
    }
}
