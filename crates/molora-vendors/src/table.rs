//! The committed table, and what a change may do to it.

use crate::figures::Figures;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write;

/// GPU and pipeline, to its figures.
pub type Table = BTreeMap<(String, String), Figures>;

const HEADER: &str =
    "gpu\tpipeline\tsubgroup\tregisters\tspills\tprivate\tworkgroup\toccupancy\tinstructions\tmatrix";

/// Registers and instructions may grow by this many hundredths.
const SLACK: u64 = 2;

/// A pipeline that may spill: `gpus` (names with commas), `pipeline` (a name, or `*/ENTRY`), at most so many, and why.
pub struct Allowed {
    gpus: String,
    pipeline: String,
    most: u64,
    reason: String,
}

/// Lines of tabs; `#` begins a comment.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(|l| l.split('\t').collect())
}

/// The table from its file.
pub fn parse(text: &str) -> Result<Table> {
    let mut rows = rows(text);
    let header = rows.next().unwrap_or_default().join("\t");
    ensure!(header == HEADER, "the table's columns are {header:?}, expected {HEADER:?}");
    let mut table = Table::new();
    for row in rows {
        ensure!(row.len() == 10, "expected 10 columns: {row:?}");
        let number = |i: usize| row[i].parse::<u64>().with_context(|| format!("column {i} of {row:?}"));
        let maybe = |i: usize| if row[i] == "-" { Ok(None) } else { number(i).map(Some) };
        let figures = Figures {
            subgroup: number(2)?,
            registers: number(3)?,
            spills: number(4)?,
            private: maybe(5)?,
            workgroup: maybe(6)?,
            occupancy: number(7)?,
            instructions: number(8)?,
            matrix: number(9)?,
        };
        let twice = table.insert((row[0].to_string(), row[1].to_string()), figures);
        ensure!(twice.is_none(), "a row twice: {row:?}");
    }
    Ok(table)
}

/// The file of a table.
pub fn format(table: &Table, drivers: &str) -> String {
    let mut text = format!("# {drivers}; tests/vendors.sh --write makes it anew\n{HEADER}\n");
    let maybe = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
    for ((gpu, pipeline), f) in table {
        let (private, workgroup) = (maybe(f.private), maybe(f.workgroup));
        let Figures { subgroup, registers, spills, occupancy, instructions, matrix, .. } = f;
        let _ = writeln!(
            text,
            "{gpu}\t{pipeline}\t{subgroup}\t{registers}\t{spills}\t{private}\t{workgroup}\t{occupancy}\t{instructions}\t{matrix}"
        );
    }
    text
}

/// The exceptions from their file.
pub fn parse_allowed(text: &str) -> Result<Vec<Allowed>> {
    rows(text)
        .map(|row| {
            ensure!(
                row.len() == 4 && !row[3].trim().is_empty(),
                "expected gpus, pipeline, most, reason: {row:?}"
            );
            let (gpus, pipeline, reason) = (row[0].into(), row[1].into(), row[3].into());
            Ok(Allowed { gpus, pipeline, most: row[2].parse().with_context(|| format!("{row:?}"))?, reason })
        })
        .collect()
}

impl Allowed {
    fn covers(&self, gpu: &str, pipeline: &str) -> bool {
        // A name's second pipeline is `NAME#2`.
        let pipeline = pipeline.split('#').next().unwrap_or_default();
        let named = match self.pipeline.strip_prefix('*') {
            Some(entry) => pipeline.ends_with(entry),
            None => pipeline == self.pipeline,
        };
        named && self.gpus.split(',').any(|one| one == gpu)
    }
}

/// Spills that no exception allows.
pub fn spills(found: &Table, allowed: &[Allowed]) -> Vec<String> {
    let mut wrong = Vec::new();
    for ((gpu, pipeline), f) in found {
        let most = allowed.iter().filter(|a| a.covers(gpu, pipeline)).map(|a| a.most).max().unwrap_or(0);
        if f.spills > most {
            wrong.push(format!("{gpu} {pipeline}: {} spills, allowed {most}", f.spills));
        }
    }
    wrong
}

/// Kernels of cooperative matrices whose compiler made no matrix instruction.
pub fn without_matrices(found: &Table) -> Vec<String> {
    let lost = found.iter().filter(|((_, name), f)| name.contains("/base_matrix") && f.matrix == 0);
    lost.map(|((gpu, name), _)| format!("{gpu} {name}: no matrix instruction")).collect()
}

/// Exceptions that nothing needs any more; only for runs that compile all that the table holds.
pub fn stale(found: &Table, allowed: &[Allowed]) -> Vec<String> {
    let used = |a: &&Allowed| !found.iter().any(|((gpu, name), f)| f.spills > 0 && a.covers(gpu, name));
    let line = |a: &Allowed| {
        format!("nothing spills any more where it was allowed: {} {} ({})", a.gpus, a.pipeline, a.reason)
    };
    allowed.iter().filter(used).map(line).collect()
}

/// What is worse in `found` than in the table.
pub fn worse(table: &Table, found: &Table) -> Vec<String> {
    let mut wrong = Vec::new();
    for (gpu, pipeline) in table.keys().filter(|key| !found.contains_key(*key)) {
        wrong.push(format!("{gpu} {pipeline}: in the table and not made"));
    }
    for ((gpu, pipeline), now) in found {
        let Some(then) = table.get(&(gpu.clone(), pipeline.clone())) else {
            wrong.push(format!("{gpu} {pipeline}: made and not in the table"));
            continue;
        };
        let mut say = |what: &str, now: u64, then: u64| {
            wrong.push(format!("{gpu} {pipeline}: {what} {now}, the table has {then}"));
        };
        for (what, now, then) in [
            ("registers", now.registers, then.registers),
            ("instructions", now.instructions, then.instructions),
        ] {
            if now * 100 > then * (100 + SLACK) {
                say(what, now, then);
            }
        }
        for (what, now, then) in [
            ("private memory", now.private, then.private),
            ("workgroup memory", now.workgroup, then.workgroup),
        ] {
            match (now, then) {
                (Some(now), Some(then)) if now > then => say(what, now, then),
                (None, Some(then)) => say(what, 0, then),
                _ => {}
            }
        }
        if now.occupancy < then.occupancy {
            say("occupancy", now.occupancy, then.occupancy);
        }
        if then.matrix > 0 && now.matrix == 0 {
            say("matrix instructions", 0, then.matrix);
        }
    }
    wrong
}

/// A GPU in a line: largest registers, spills, lowest occupancy.
pub fn summary(found: &Table, gpu: &str) -> String {
    let of: Vec<_> = found.iter().filter(|((g, _), _)| g == gpu).collect();
    let named = |best: Option<&(&(String, String), &Figures)>, value: fn(&Figures) -> u64| {
        best.map_or("-".into(), |((_, name), f)| format!("{} ({name})", value(f)))
    };
    let registers = named(of.iter().max_by_key(|(_, f)| f.registers), |f| f.registers);
    let occupancy = named(of.iter().min_by_key(|(_, f)| f.occupancy), |f| f.occupancy);
    let spilling = of.iter().filter(|(_, f)| f.spills > 0).count();
    let private = of.iter().filter_map(|(_, f)| f.private).max().unwrap_or(0);
    let matrix = of.iter().filter(|(_, f)| f.matrix > 0).count();
    format!(
        "{gpu:<10} {:>3} pipelines, registers <= {registers}, occupancy >= {occupancy}, {spilling} spill, private memory \
         <= {private}, {matrix} with matrix instructions",
        of.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(f: impl Fn(&mut Figures)) -> Table {
        let mut figures = Figures {
            subgroup: 32,
            registers: 100,
            spills: 0,
            private: Some(0),
            workgroup: Some(1024),
            occupancy: 8,
            instructions: 1000,
            matrix: 4,
        };
        f(&mut figures);
        Table::from([(("ga102".to_string(), "f16/base_many".to_string()), figures)])
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let table = one(|f| f.private = None);
        assert_eq!(parse(&format(&table, "Mesa")).unwrap(), table);
        assert!(parse("gpu\tpipeline\n").is_err());
        let twice = format(&table, "Mesa");
        let row = twice.lines().last().unwrap();
        assert!(parse(&format!("{twice}{row}\n")).is_err());
    }

    #[test]
    fn whatever_is_worse_is_said() {
        let table = one(|_| ());
        assert!(worse(&table, &one(|_| ())).is_empty());
        assert!(worse(&table, &one(|f| f.instructions = 1020)).is_empty());
        for f in [
            (|f| f.instructions = 1021) as fn(&mut Figures),
            |f| f.registers = 103,
            |f| f.private = Some(4),
            |f| f.workgroup = Some(1025),
            |f| f.workgroup = None,
            |f| f.occupancy = 7,
            |f| f.matrix = 0,
        ] {
            assert_eq!(worse(&table, &one(f)).len(), 1);
        }
        assert_eq!(worse(&table, &Table::new()).len(), 1);
        assert_eq!(worse(&Table::new(), &table).len(), 1);
    }

    #[test]
    fn matrices_without_their_instructions_are_said() {
        let named = |name: &str, matrix: u64| {
            let figures = one(|f| f.matrix = matrix).into_values().next().unwrap();
            Table::from([(("navi31".to_string(), name.to_string()), figures)])
        };
        assert!(without_matrices(&named("f16/base_matrix", 4)).is_empty());
        assert_eq!(without_matrices(&named("f16/base_matrix#2", 0)).len(), 1);
        assert!(without_matrices(&named("f16/base_many", 0)).is_empty());
    }

    #[test]
    fn spills_need_a_reason_that_still_holds() {
        let spilling = one(|f| f.spills = 3);
        assert_eq!(spills(&spilling, &[]).len(), 1);
        let allowed = |line: &str| parse_allowed(line).unwrap();
        assert!(spills(&spilling, &allowed("turing,ga102\t*/base_many\t3\tbecause")).is_empty());
        assert!(spills(&spilling, &allowed("ga102\tf16/base_many\t3\tbecause")).is_empty());
        assert_eq!(spills(&spilling, &allowed("ga102\t*/base_many\t2\tbecause")).len(), 1);
        assert_eq!(spills(&spilling, &allowed("turing\t*/base_many\t3\tbecause")).len(), 1);
        assert!(parse_allowed("ga102\t*/base_many\t3\t").is_err());
        assert_eq!(stale(&one(|_| ()), &allowed("ga102\t*/base_many\t3\tbecause")).len(), 1);
        assert!(stale(&spilling, &allowed("ga102\t*/base_many\t3\tbecause")).is_empty());
    }
}
