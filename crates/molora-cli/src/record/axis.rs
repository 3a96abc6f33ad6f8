//! Logarithmic and plain axes: where a value lies, and which values are written beside them.

/// From values to pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// The pixels of `low` and `high`; the first may be the larger.
    pixels: [f64; 2],
}

impl Axis {
    /// Values above 0, each factor as long as the next.
    pub fn logarithmic([low, high]: [f64; 2], pixels: [f64; 2]) -> Self {
        Self { low, high, logarithmic: true, pixels }
    }

    /// From 0 on.
    pub fn plain(high: f64, pixels: [f64; 2]) -> Self {
        Self { low: 0.0, high, logarithmic: false, pixels }
    }

    /// The ends' values.
    pub fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Whether equal lengths are equal factors.
    pub fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }

    /// The pixel of a value; of one beyond an end that end's.
    pub fn at(&self, value: f64) -> f64 {
        let share = match self.logarithmic {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.pixels[0] + share.clamp(0.0, 1.0) * (self.pixels[1] - self.pixels[0])
    }

    /// Round values: 1, 2, 5 and their tenfolds, fewer where many decades would crowd, no more than about ten.
    pub fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            let step = round_up(self.high / 8.0);
            return (0..).map(|i| f64::from(i) * step).take_while(|&v| v <= self.high * 1.000_001).collect();
        }
        let steps: &[f64] = match (self.high / self.low).log10() {
            decades if decades <= 3.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let values = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        values.filter(|&v| v >= self.low / 1.000_001 && v <= self.high * 1.000_001).collect()
    }
}

/// The least of 1, 2, 5 and their tenfolds that is not less.
fn round_up(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|step| step * decade >= value / 1.000_001);
    decade * step.unwrap_or(10.0)
}

/// A tick's text, without digits that say nothing.
pub fn label(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{v:.0e}"),
        v if v >= 1.0 || v == 0.0 => format!("{}", (v * 100.0).round() / 100.0),
        v if v >= 1e-3 => format!("{}", (v * 1e5).round() / 1e5),
        v => format!("{v:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithmic_axes_put_equal_factors_at_equal_lengths() {
        let axis = Axis::logarithmic([0.1, 1000.0], [100.0, 500.0]);
        for (value, pixel) in [(0.1, 100.0), (1.0, 200.0), (10.0, 300.0), (1000.0, 500.0), (1e9, 500.0)] {
            assert!((axis.at(value) - pixel).abs() < 1e-9, "{value}: {}", axis.at(value));
        }
        assert_eq!(axis.ticks(), [0.1, 1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(Axis::logarithmic([0.9, 6.0], [0.0, 1.0]).ticks(), [1.0, 2.0, 5.0]);
    }

    #[test]
    fn plain_axes_begin_at_zero() {
        let axis = Axis::plain(7.0, [10.0, 80.0]);
        assert_eq!((axis.at(0.0), axis.at(3.5), axis.at(7.0)), (10.0, 45.0, 80.0));
        assert_eq!(axis.ticks(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(Axis::plain(1.2, [0.0, 1.0]).ticks().len(), 7);
    }

    #[test]
    fn labels_are_short() {
        let texts = [0.0, 0.002, 0.5, 1.0, 20.0, 500_000.0, 2e6].map(label);
        assert_eq!(texts, ["0", "0.002", "0.5", "1", "20", "500000", "2e6"]);
    }
}
