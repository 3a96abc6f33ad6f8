//! A comparison as text.

use super::compare::{Comparison, Name, Side, Verdict};
use std::fmt;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Noise => "within noise",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        write!(
            f,
            "{}, molora {}, {} ({}, {} threads, {})",
            self.date, self.version, machine.name, machine.processor, machine.threads, machine.system
        )
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A: {}\nB: {}", self.a, self.b)?;
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        writeln!(f, "\ncase | series | A us | B us | A / B | spread | A % of limit | B % of limit | B is")?;
        for pair in &self.pairs {
            let [low, high] = pair.spread;
            let [a, b] = pair.limit_shares.map(percent);
            writeln!(
                f,
                "{} | {} | {:.1} | {:.1} | {:.3} | {low:.3} to {high:.3} | {a} | {b} | {}",
                pair.name.case, pair.name.series, pair.a_us, pair.b_us, pair.ratio, pair.verdict
            )?;
        }
        writeln!(f, "\nseries | geometric mean of A / B | ratio | pairs | faster | slower | within noise")?;
        for mean in &self.means {
            let (series, of, ratio) = (&mean.series, &mean.of, mean.ratio);
            let (pairs, faster, slower, noise) = (mean.pairs, mean.faster, mean.slower, mean.noise);
            writeln!(f, "{series} | {of} | {ratio:.3} | {pairs} | {faster} | {slower} | {noise}")?;
        }
        writeln!(f)?;
        missing(f, "A", &self.only_a)?;
        missing(f, "B", &self.only_b)?;
        for line in &self.not_compared {
            writeln!(f, "not compared: {} | {}: {}", line.name.case, line.name.series, line.why)?;
        }
        Ok(())
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.0}", 100.0 * share))
}

fn missing(f: &mut fmt::Formatter<'_>, side: &str, names: &[Name]) -> fmt::Result {
    writeln!(f, "only in {side}: {}", names.len())?;
    for name in names {
        writeln!(f, "  {} | {} | {}", name.case, name.series, name.device)?;
    }
    Ok(())
}
