//! A run's record as it grows: after every case it lies in a part file, and a later run goes on from there.

use anyhow::{Context, Result, bail, ensure};
use molora_check::ceilings::merge;
use molora_check::machine;
use molora_check::record::{Ceiling, FORMAT, Line, Machine, Record};
use molora_check::report::OURS;
use std::path::{Path, PathBuf};

/// A record and where it is kept.
#[derive(Debug)]
pub struct Session {
    record: Record,
    /// Where it goes when all cases are done; nowhere without a name.
    out: Option<PathBuf>,
}

/// `FILE.part`: what is there before a run is whole.
pub fn part_of(out: &Path) -> PathBuf {
    out.with_added_extension("part")
}

/// Where records of machines are kept: `benches/record/DATE-MACHINE.json`.
pub fn kept_name() -> PathBuf {
    let name = format!("{}-{}.json", machine::today(), Machine::here().name);
    Path::new("benches").join("record").join(name)
}

impl Session {
    /// A run from its beginning. A part file of an earlier one is not overwritten.
    pub fn new(out: Option<&Path>) -> Result<Self> {
        if let Some(part) = out.map(part_of).filter(|part| part.exists()) {
            let part = part.display();
            bail!("{part}: expected no unfinished run, got one; go on with --resume {part}, or remove it");
        }
        let record = Record {
            format: FORMAT,
            date: machine::today(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            machine: Machine::here(),
            ceilings: Vec::new(),
            lines: Vec::new(),
        };
        let session = Self { record, out: out.map(Path::to_path_buf) };
        session.save()?;
        Ok(session)
    }

    /// Goes on where a run of this machine and version stopped. `file` is the part file, or the name without `.part`; the
    /// record ends up there unless `out` says otherwise.
    pub fn resume(file: &Path, out: Option<&Path>) -> Result<Self> {
        let whole = match file.extension() {
            Some(extension) if extension == "part" => file.with_extension(""),
            _ => file.to_path_buf(),
        };
        let part = part_of(&whole);
        let found = if part.exists() { part } else { whole.clone() };
        let record = Record::read(&found).map_err(anyhow::Error::msg).context("--resume")?;
        let (here, name) = (Machine::here(), found.display());
        let (version, machine) = (env!("CARGO_PKG_VERSION"), &record.machine);
        ensure!(
            *machine == here,
            "--resume {name}: expected a run of this machine ({here:?}), got one of another ({machine:?})"
        );
        let got = &record.version;
        ensure!(got == version, "--resume {name}: expected a run of version {version}, got one of {got}");
        let session = Self { record, out: Some(out.map_or(whole, Path::to_path_buf)) };
        session.save()?;
        Ok(session)
    }

    /// Whether a case, by its label, has its lines of a device.
    pub fn has(&self, label: &str, device: &str) -> bool {
        let same = |line: &Line| line.series == OURS && line.case == label && line.device == device;
        self.record.lines.iter().any(same)
    }

    /// The best ceilings so far.
    pub fn ceilings(&self) -> &[Ceiling] {
        &self.record.ceilings
    }

    /// Takes the better of known and new ceilings.
    pub fn raise(&mut self, ceilings: Vec<Ceiling>) {
        merge(&mut self.record.ceilings, ceilings);
    }

    /// A case's lines: from here on they are kept.
    pub fn add(&mut self, lines: Vec<Line>) -> Result<()> {
        self.record.lines.extend(lines);
        self.save()
    }

    /// Where an unfinished run is kept.
    pub fn part(&self) -> Option<PathBuf> {
        self.out.as_deref().map(part_of)
    }

    fn save(&self) -> Result<()> {
        let Some(part) = self.part() else { return Ok(()) };
        if let Some(folder) = part.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        self.record.write(&part).map_err(anyhow::Error::msg)
    }

    /// The whole record: every line judged by the best ceilings of the run, the part file replaced by the named one.
    pub fn finish(mut self) -> Result<Record> {
        let mut lines = std::mem::take(&mut self.record.lines);
        for line in &mut lines {
            let element = line.case.split('/').nth(2).and_then(|elements| elements.split('+').next());
            let ceiling = self.record.ceiling(&line.device, element.unwrap_or_default());
            line.floor = ceiling.map(|ceiling| ceiling.floor(&line.work)).or(line.floor);
        }
        self.record.lines = lines;
        if let Some(out) = &self.out {
            self.record.write(out).map_err(anyhow::Error::msg)?;
            let part = part_of(out);
            std::fs::remove_file(&part).with_context(|| part.display().to_string())?;
        }
        Ok(self.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_check::record::Floor;
    use molora_check::report::Work;

    fn line(case: &str) -> Line {
        Line {
            case: case.into(),
            device: "cpu: x".into(),
            series: OURS.into(),
            latency_us_median: 10.0,
            latency_us_quartiles: [9.0, 11.0],
            samples: 5,
            clock: "wall".into(),
            work: Work { flops: 2e6, bytes: 1e5 },
            floor: None,
            ratios: Vec::new(),
            error: None,
        }
    }

    fn ceiling(gflop_per_s: f64) -> Ceiling {
        Ceiling { device: "cpu: x".into(), element: "f16".into(), gflop_per_s, gb_per_s: 10.0 }
    }

    #[test]
    fn a_run_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new").join("a.json");
        let mut first = Session::new(Some(&out)).unwrap();
        first.raise(vec![ceiling(100.0)]);
        first.add(vec![line("shrink/cpu/f16+f32/t1")]).unwrap();
        drop(first);
        assert!(!out.exists() && part_of(&out).exists());
        let again = Session::new(Some(&out)).unwrap_err().to_string();
        assert!(again.contains("--resume") && again.contains("a.json.part"), "{again}");
        for name in [out.clone(), part_of(&out)] {
            assert!(Session::resume(&name, None).unwrap().has("shrink/cpu/f16+f32/t1", "cpu: x"));
        }
        let mut second = Session::resume(&part_of(&out), None).unwrap();
        assert!(!second.has("shrink/cpu/f16+f32/t1", "cpu: y") && !second.has("base/cpu/f16/t1", "cpu: x"));
        second.raise(vec![ceiling(200.0)]);
        second.add(vec![line("base/cpu/f16/t1")]).unwrap();
        let record = second.finish().unwrap();
        assert!(out.exists() && !part_of(&out).exists());
        assert_eq!(Record::read(&out).unwrap(), record);
        let floor = Some(Floor { operations_us: 10.0, bytes_us: 10.0 });
        assert_eq!(record.lines.iter().map(|l| l.floor).collect::<Vec<_>>(), [floor; 2], "by the best");
    }

    #[test]
    fn another_machine_or_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a.json");
        let refused = |change: &dyn Fn(&mut Record)| {
            let mut record = Session::new(None).unwrap().record;
            change(&mut record);
            record.write(&part_of(&out)).unwrap();
            format!("{:#}", Session::resume(&out, None).unwrap_err())
        };
        let machine = refused(&|record| record.machine.threads += 1);
        assert!(
            machine.contains("expected a run of this machine") && machine.contains("a.json.part"),
            "{machine}"
        );
        let version = refused(&|record| record.version = "0.0.0".into());
        assert!(version.contains("got one of 0.0.0"), "{version}");
        let format = refused(&|record| record.format = 99);
        assert!(format.contains("format 99"), "{format}");
        std::fs::write(part_of(&out), "{").unwrap();
        assert!(format!("{:#}", Session::resume(&out, None).unwrap_err()).contains("a.json.part"));
    }
}
