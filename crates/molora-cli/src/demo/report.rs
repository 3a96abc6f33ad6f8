//! What the demo found, as a table and as JSON.

use super::golden::Differences;
use super::perplexity::{Evaluation, Perplexity};
use crate::engine::expert::Forms;
use molora::host::Device;
use serde::Serialize;
use std::fmt::Write;

/// Relative differences below this are rounding, in f32.
const TOLERANCE: f64 = 5e-5;

/// Everything that one run reports.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What computed the linears with experts: `cpu` or `wgpu`.
    pub device: &'static str,
    /// The device in words.
    pub device_description: String,
    /// Tokens through the model, counted once for each setting, by seconds.
    pub tokens_per_second: f64,
    /// Calls of the linears with experts, by the form in which they ran.
    pub forms: Forms,
    /// Setting to domain to perplexity.
    pub perplexity: Perplexity,
    /// Distances from the golden sequence, if there is one.
    pub golden: Option<Differences>,
}

impl Report {
    /// Puts the parts together.
    pub fn new(device: &Device, evaluation: Evaluation, golden: Option<Differences>, forms: Forms) -> Self {
        let seconds = evaluation.time.as_secs_f64().max(1e-9);
        Self {
            device: device.name(),
            device_description: device.describe(),
            tokens_per_second: evaluation.tokens as f64 / seconds,
            forms,
            perplexity: evaluation.perplexity,
            golden,
        }
    }

    /// The largest relative difference from the expected perplexities, over the figures that both have.
    pub fn max_relative_difference(&self, expected: &Perplexity) -> Option<f64> {
        let mut max = None;
        for (setting, domains) in &self.perplexity {
            for (domain, got) in domains {
                let Some(want) = expected.get(setting).and_then(|domains| domains.get(domain)) else {
                    continue;
                };
                let difference = ((got - want) / want).abs();
                if max.is_none_or(|max| difference > max) || difference.is_nan() {
                    max = Some(difference);
                }
            }
        }
        max
    }

    /// The table: one line for each setting, one column for each domain; the expected figure in brackets.
    pub fn table(&self, settings: &[String], expected: Option<&Perplexity>) -> String {
        let domains: Vec<&String> =
            self.perplexity.values().next().map(|d| d.keys().collect()).unwrap_or_default();
        let first = settings.iter().map(String::len).max().unwrap_or(0).max("perplexity".len());
        let mut text = format!("{:first$}", "perplexity");
        for domain in &domains {
            let _ = write!(text, " | {domain:>19}");
        }
        let _ = writeln!(text, "\n{}", "-".repeat(first + 22 * domains.len()));
        for setting in settings {
            let Some(row) = self.perplexity.get(setting) else { continue };
            let _ = write!(text, "{setting:first$}");
            for domain in &domains {
                let want = expected.and_then(|expected| expected.get(setting)?.get(*domain));
                let want = want.map_or_else(String::new, |want| format!("({want:.4})"));
                let got = row.get(*domain).copied().unwrap_or(f64::NAN);
                let _ = write!(text, " | {got:9.4} {want:>9}");
            }
            text.push('\n');
        }
        self.write_summary(&mut text, expected);
        text
    }

    fn write_summary(&self, text: &mut String, expected: Option<&Perplexity>) {
        if let Some(max) = expected.and_then(|expected| self.max_relative_difference(expected)) {
            let verdict = if max < TOLERANCE { "within" } else { "OUTSIDE" };
            let _ = writeln!(
                text,
                "In brackets: computed independently. Largest relative difference {max:.1e}, {verdict} {TOLERANCE:.0e}."
            );
        }
        if let Some(golden) = &self.golden {
            let _ = writeln!(text, "\nGolden sequence, largest difference of a logit:");
            for (setting, difference) in &golden.max_logit_difference {
                let _ = writeln!(text, "  {setting:20} {difference:.1e}");
            }
            let _ = writeln!(
                text,
                "Lists of experts: {} compared, {} different, {} near ties left out; largest difference of a weight {:.1e}",
                golden.router_lists_compared,
                golden.router_lists_different,
                golden.router_lists_near_ties,
                golden.max_router_weight_difference
            );
        }
        let _ = writeln!(
            text,
            "\n{} ({}): {:.0} tokens/s (every token counted once for each setting)",
            self.device, self.device_description, self.tokens_per_second
        );
        let _ = writeln!(text, "{}", forms(&self.forms));
    }
}

/// The forms with their shares of the calls, the most frequent first.
pub fn forms(forms: &Forms) -> String {
    let all = forms.values().sum::<usize>().max(1) as f64;
    let mut ranked: Vec<_> = forms.iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(a.1));
    let ranked: Vec<String> =
        ranked.iter().map(|(form, calls)| format!("{form} {:.1} %", **calls as f64 / all * 100.0)).collect();
    format!("Form of the linears with experts, by calls: {}", ranked.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn report() -> Report {
        let row = |value| BTreeMap::from([("law".to_owned(), value)]);
        let perplexity = BTreeMap::from([("base".to_owned(), row(27.5)), ("top2".to_owned(), row(15.0))]);
        let golden = Differences {
            max_logit_difference: BTreeMap::from([("base".to_owned(), 1e-5)]),
            router_lists_compared: 10,
            ..Default::default()
        };
        let evaluation = Evaluation { perplexity, tokens: 100, time: Duration::from_secs(2) };
        let forms = Forms::from([("dense", 3), ("few", 9)]);
        Report::new(&Device::by_name("cpu").unwrap(), evaluation, Some(golden), forms)
    }

    #[test]
    fn json_has_the_promised_shape() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["device"], "cpu");
        assert_eq!(json["tokens_per_second"], 50.0);
        assert_eq!(json["perplexity"]["top2"]["law"], 15.0);
        assert_eq!(json["golden"]["max_logit_difference"]["base"], 1e-5);
        assert_eq!(json["golden"]["router_lists_compared"], 10);
        assert_eq!(json["golden"]["router_lists_different"], 0);
        assert_eq!(json["forms"], serde_json::json!({"dense": 3, "few": 9}));
    }

    #[test]
    fn the_table_shows_the_expected_figures_and_the_verdict() {
        let report = report();
        let row = |value| BTreeMap::from([("law".to_owned(), value)]);
        let expected = BTreeMap::from([("base".to_owned(), row(27.5)), ("top2".to_owned(), row(14.0))]);
        let settings = ["base".to_owned(), "top2".to_owned()];
        let table = report.table(&settings, Some(&expected));
        assert!(table.contains("15.0000 (14.0000)"), "{table}");
        assert!(table.contains("OUTSIDE"), "{table}");
        assert!(table.contains("by calls: few 75.0 %, dense 25.0 %"), "{table}");
        assert!(!report.table(&settings, None).contains("In brackets"));
    }
}
