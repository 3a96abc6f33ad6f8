//! A record as markdown for the README: one table a device, one row a case.

use super::series::{Other, contender, devices, operation, others, ours};
use anyhow::{Result, bail};
use molora_check::record::{Line, Record};
use std::fmt::Write;

/// The named operations' lines of a record, all where none is named.
pub fn markdown(record: &Record, operations: &[String]) -> Result<String> {
    let wanted =
        |line: &&Line| operations.is_empty() || operations.iter().any(|name| name == operation(&line.case));
    for name in operations {
        if !ours(record).any(|line| operation(&line.case) == name) {
            bail!("operation {name}: the record has no line of molora's with a time");
        }
    }
    let machine = &record.machine;
    let mut text = format!(
        "{}, molora {}, {} ({} threads, {}). Medians, quartiles in brackets.",
        record.date, record.version, machine.processor, machine.threads, machine.system
    );
    let mut tables = 0;
    for device in devices(record) {
        let lines: Vec<&Line> = ours(record).filter(|line| line.device == device).filter(wanted).collect();
        if !lines.is_empty() {
            write!(text, "\n\n{}\n\n{}", ceilings(record, device), table(record, &lines))?;
            tables += 1;
        }
    }
    if tables == 0 {
        bail!("the record has no line of molora's with a time");
    }
    if text.contains(" x |") {
        text +=
            "\n\nx: the other's time over molora's, median of alternating pairs, 95 % interval in brackets";
        text += if text.contains("| ~") { "; ~: ratio of medians." } else { "." };
    }
    Ok(text)
}

/// The device and its ceilings, element types with the same ones together.
fn ceilings(record: &Record, device: &str) -> String {
    let mut rates: Vec<(String, String)> = Vec::new();
    for ceiling in record.ceilings.iter().filter(|ceiling| ceiling.device == device) {
        let rate = format!("{:.0} GFLOP/s and {:.1} GB/s", ceiling.gflop_per_s, ceiling.gb_per_s);
        match rates.iter_mut().find(|(_, other)| *other == rate) {
            Some((elements, _)) => *elements += &format!(", {}", ceiling.element),
            None => rates.push((ceiling.element.clone(), rate)),
        }
    }
    if rates.is_empty() {
        return format!("**{device}** (limit not measured)");
    }
    let rates: Vec<String> = rates.iter().map(|(elements, rate)| format!("{elements} {rate}")).collect();
    format!("**{device}** (limit, measured in the same run: {})", rates.join("; "))
}

fn table(record: &Record, lines: &[&Line]) -> String {
    let others: Vec<Vec<Other>> = lines.iter().map(|line| others(record, line)).collect();
    let mut columns: Vec<&str> = Vec::new();
    for other in others.iter().flatten() {
        let name = contender(&other.series);
        if !columns.contains(&name) {
            columns.push(name);
        }
    }
    let mut text = "| case | us | GFLOP/s | GB/s | % of limit |".to_string();
    columns.iter().for_each(|name| text += &format!(" {name} x |"));
    text += "\n|---|--:|--:|--:|--:|";
    columns.iter().for_each(|_| text += "--:|");
    for (line, others) in lines.iter().zip(&others) {
        text += "\n";
        text += &row(line);
        for column in &columns {
            let of_column = others.iter().filter(|other| contender(&other.series) == *column);
            // A contender's best variant is the one to beat.
            let best = of_column.min_by(|a, b| a.ratio.total_cmp(&b.ratio));
            text += &format!(" {} |", best.map(ratio).unwrap_or_default());
        }
    }
    text
}

fn row(line: &Line) -> String {
    let (us, [low, high]) = (line.latency_us_median, line.latency_us_quartiles);
    let share = line.limit_share().map_or_else(String::new, |share| format!("{:.0}", 100.0 * share));
    format!(
        "| `{}` | {} [{}, {}] | {:.1} | {:.1} | {share} |",
        line.case,
        time(us),
        time(low),
        time(high),
        line.work.flops / us / 1e3,
        line.work.bytes / us / 1e3,
    )
}

/// Microseconds with three digits or all that stand before the point.
pub fn time(us: f64) -> String {
    match us {
        us if us < 10.0 => format!("{us:.2}"),
        us if us < 100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

/// `3.21 [3.10, 3.30] (loop)`.
fn ratio(other: &Other) -> String {
    let mut text = if other.alternating { String::new() } else { "~".to_string() };
    text += &format!("{:.2}", other.ratio);
    if let (true, Some([low, high])) = (other.alternating, other.range) {
        text += &format!(" [{low:.2}, {high:.2}]");
    }
    if let Some((_, variant)) = other.series.split_once('/') {
        text += &format!(" ({variant})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::series::example::{line, ratio, record};
    use super::*;
    use molora_check::report::OURS;

    fn full() -> Record {
        let mut layer = line("layer/cpu/f32/t8", OURS, 123.4);
        layer.ratios = vec![ratio("base", 0.952, Some([0.94, 0.96])), ratio("torch/loop", 3.0, None)];
        let sort = line("layer/cpu/f32/t8", "torch/sort", 246.8);
        record(vec![layer, sort, line("base/cpu/f32/t8", OURS, 1234.5)])
    }

    /// The cells of a table's rows.
    fn cells(markdown: &str) -> Vec<Vec<&str>> {
        let rows = markdown.lines().filter(|line| line.starts_with("| `") || line.starts_with("| case"));
        rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
    }

    #[test]
    fn a_table_read_back_has_the_records_figures() {
        let record = full();
        let text = markdown(&record, &[]).unwrap();
        let cells = cells(&text);
        assert_eq!(cells[0], ["case", "us", "GFLOP/s", "GB/s", "% of limit", "base x", "torch x"]);
        let layer = ["`layer/cpu/f32/t8`", "123 [111, 136]", "50.0", "10.0", "50", "0.95 [0.94, 0.96]"];
        assert_eq!(cells[1][..6], layer);
        assert_eq!(cells[1][6], "~2.00 (sort)", "torch's best variant");
        assert_eq!(cells[2], ["`base/cpu/f32/t8`", "1234 [1111, 1358]", "50.0", "10.0", "50", "", ""]);
        assert_eq!(cells.len(), 3);
        for (row, line) in cells[1..].iter().zip(ours(&record)) {
            let us: f64 = row[1].split(' ').next().unwrap().parse().unwrap();
            assert!((us / line.latency_us_median - 1.0).abs() < 5e-3);
        }
        assert!(text.contains("f32 200 GFLOP/s and 20.0 GB/s") && text.contains("2026-01-02, molora 0.1.0"));
        assert!(text.ends_with("~: ratio of medians."), "{text}");
    }

    #[test]
    fn operations_are_chosen_and_unknown_ones_refused() {
        let chosen = markdown(&full(), &["base".into()]).unwrap();
        assert_eq!(cells(&chosen).len(), 2);
        assert!(!chosen.contains("layer/") && !chosen.contains("x:"));
        let why = markdown(&full(), &["bose".into()]).unwrap_err().to_string();
        assert!(why.contains("operation bose"), "{why}");
        assert!(markdown(&record(vec![line("base/cpu/f32/t8", "torch", 1.0)]), &[]).is_err());
    }

    #[test]
    fn a_device_without_a_ceiling_says_so() {
        let mut record = full();
        record.ceilings.clear();
        record.lines[0].floor = None;
        let text = markdown(&record, &["layer".into()]).unwrap();
        assert!(text.contains("limit not measured"));
        assert_eq!(cells(&text)[1][4], "");
    }
}
