//! `molora bench`: times of the operations at the sizes of published models, one line a case, judged by what the device was
//! just seen to do at most. On a machine that executes and counts the lines carry counters and never a time.

mod counted;
mod session;

use crate::record;
use crate::verify::{chosen, progress};
use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use molora_check::bench::{Refused, time};
use molora_check::ceilings::{Meter, ROUNDS};
use molora_check::measure::Budget;
use molora_check::named::{Extent, named};
use molora_check::record::{Line, Record};
use molora_check::report::{HEADING, LEGEND};
use molora_check::{Case, Op, Subject};
use serde_json::json;
use session::{Session, kept_name};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Time of a quick run on all devices, less what the last case of each may take.
const MINUTE: Duration = Duration::from_secs(50);

/// Time the operations at the sizes of published models, judged by the device's measured limits
#[derive(clap::Args, Debug, Default, Clone)]
pub struct BenchArgs {
    /// Only devices with this in their name (`cpu`, `cuda`, `wgpu`, `lavapipe`, ..)
    #[arg(long)]
    pub device: Option<String>,
    /// Only these operations (`route`, `plan`, `shrink`, `attend`, `expand`, `base`, `delta`, `layer`, `fused`, `grouped`)
    #[arg(long, value_delimiter = ',', value_parser = parse_op)]
    pub op: Vec<Op>,
    /// Tokens of a call [default: 1, 8, 64, 256; quick 1, 64; all 1, 8, 16, 64, 256, 1024, 4096]
    #[arg(long, value_delimiter = ',')]
    pub tokens: Vec<usize>,
    /// Only cases with this in their text
    #[arg(long, value_name = "PART")]
    pub case: Option<String>,
    /// One small layer: within a minute. Without this and --all: one published layer, some of the others, minutes
    #[arg(long, conflicts_with = "all")]
    pub quick: bool,
    /// Every named case: hours
    #[arg(long)]
    pub all: bool,
    /// Print the cases and time none
    #[arg(long)]
    pub list: bool,
    /// Print what the devices do at most and time no case
    #[arg(long)]
    pub ceilings: bool,
    /// Alternating pairs of a case, at least, whatever it takes [default: what a second holds; 30 where four seconds hold them]
    #[arg(long)]
    pub pairs: Option<usize>,
    /// Write the run's record there; FILE.part as long as it is unfinished
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    pub out: Option<PathBuf>,
    /// Write the run's record to benches/record/DATE-MACHINE.json
    #[arg(long)]
    pub record: bool,
    /// Go on with an unfinished run, with the same choice of cases
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    pub resume: Option<PathBuf>,
    /// Time nothing; compare two recorded runs, the earlier first
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["device", "op", "tokens", "quick", "all"])]
    pub compare: Vec<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

fn parse_op(text: &str) -> Result<Op, String> {
    let names = Op::ALL.map(Op::name);
    Op::ALL
        .into_iter()
        .find(|op| op.name() == text)
        .ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

impl BenchArgs {
    fn extent(&self) -> Extent {
        match (self.quick, self.all) {
            (true, _) => Extent::Quick,
            (_, true) => Extent::All,
            _ => Extent::Usual,
        }
    }

    fn budget(&self) -> Budget {
        let usual = if self.quick { Budget::QUICK } else { Budget::USUAL };
        let longest = if self.all { Duration::from_secs(60) } else { usual.longest };
        match self.pairs {
            Some(pairs) => Budget { time: longest * pairs as u32, pairs, longest },
            None => Budget { longest, ..usual },
        }
    }

    /// Where the record goes; a resumed one stays where it is.
    fn out_file(&self) -> Option<PathBuf> {
        self.out.clone().or(self.record.then(kept_name))
    }

    /// The chosen cases.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let ops = if self.op.is_empty() { Op::ALL.to_vec() } else { self.op.clone() };
        let cases = ops.into_iter().flat_map(|op| named(op, self.extent(), &self.tokens));
        let wanted = |case: &Case| match &self.case {
            Some(part) => case.to_string().contains(part) || case.label("cpu").contains(part),
            None => true,
        };
        let cases: Vec<Case> = cases.filter(wanted).collect();
        ensure!(!cases.is_empty(), "no case is left; `molora bench --list` prints them, --all adds more");
        Ok(cases)
    }
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    if args.list {
        args.cases()?.iter().for_each(|case| println!("{case}"));
        return Ok(ExitCode::SUCCESS);
    }
    if let [a, b] = &args.compare[..] {
        return record::compare_files(a, b, args.json).map(|()| ExitCode::SUCCESS);
    }
    let out = args.out_file();
    let record = measure(args, |text| println!("{text}"))?;
    if let Some(out) = out {
        eprintln!("{}: {} lines", out.display(), record.lines.len());
        record::draw(&out)?.iter().for_each(|picture| eprintln!("{}", picture.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// All of a run; `print` gets its lines of text. An interrupt at any time leaves the part file as of the last case.
pub fn measure(args: &BenchArgs, mut print: impl FnMut(String)) -> Result<Record> {
    let (cases, out) = (args.cases()?, args.out_file());
    let mut session = match &args.resume {
        Some(file) => Session::resume(file, out.as_deref())?,
        None => Session::new(out.as_deref())?,
    };
    if let Some(part) = session.part() {
        let part = part.display();
        tracing::info!("{part} grows with every case; after an interrupt go on with --resume {part}");
    }
    let subjects = chosen(args.device.as_deref())?;
    let steps = if args.ceilings { subjects.len() } else { subjects.len() * cases.len() };
    let bar = progress(steps);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, about {eta} left, {msg}");
    bar.set_style(style.expect("a fixed template"));
    bar.enable_steady_tick(Duration::from_secs(1));
    let mut run = Run { args, bar, session: &mut session, until: None };
    let start = Instant::now();
    for (i, subject) in subjects.iter().enumerate() {
        // Devices share the minute.
        run.until = args.quick.then(|| start + MINUTE * (i as u32 + 1) / subjects.len() as u32);
        let todo = if args.ceilings { &[][..] } else { &cases };
        run.subject(subject.as_ref(), todo, &mut print)?;
    }
    run.bar.finish_and_clear();
    session.finish()
}

struct Run<'a> {
    args: &'a BenchArgs,
    bar: ProgressBar,
    session: &'a mut Session,
    /// When a quick run leaves this device.
    until: Option<Instant>,
}

impl Run<'_> {
    fn print(&self, text: String, print: &mut impl FnMut(String)) {
        self.bar.suspend(|| print(text));
    }

    /// Ceilings first, then every case that the record has not yet.
    fn subject(
        &mut self,
        subject: &dyn Subject,
        cases: &[Case],
        print: &mut impl FnMut(String),
    ) -> Result<()> {
        let name = subject.name();
        self.bar.set_message(format!("{name}: ceilings"));
        let mut meter = subject.meter()?;
        self.meter(&name, &mut meter, ROUNDS)?;
        self.heading(subject, print)?;
        if self.args.ceilings {
            self.bar.inc(1);
        }
        for (i, case) in cases.iter().enumerate() {
            if self.until.is_some_and(|until| Instant::now() > until) {
                let left = cases.len() - i;
                self.bar.inc(left as u64);
                self.not_timed(
                    &format!("{left} cases more"),
                    "not timed: a quick run's minute is over",
                    print,
                );
                break;
            }
            let label = case.label(subject.kind());
            self.bar.set_message(label.clone());
            if !self.session.has(&label, &name) {
                self.meter(&name, &mut meter, 1)?;
                self.case(subject, case, print)?;
            }
            self.bar.inc(1);
        }
        Ok(())
    }

    fn meter(&mut self, name: &str, meter: &mut Option<Box<dyn Meter + '_>>, rounds: usize) -> Result<()> {
        if let Some(meter) = meter {
            (0..rounds).try_for_each(|_| meter.round())?;
            self.session.raise(meter.best().ceilings(name));
        }
        Ok(())
    }

    fn heading(&self, subject: &dyn Subject, print: &mut impl FnMut(String)) -> Result<()> {
        let name = subject.name();
        let ceilings = self.session.ceilings().iter().filter(|c| c.device == name);
        if self.args.json {
            for ceiling in ceilings {
                self.print(json!({ "ceiling": ceiling }).to_string(), print);
            }
            return Ok(());
        }
        self.print(name.clone(), print);
        if subject.is_stand_in() {
            self.print("no ceilings: it executes and counts, its times mean nothing".into(), print);
        }
        for ceiling in ceilings {
            self.print(ceiling.to_string(), print);
        }
        if !self.args.ceilings {
            let heading = match subject.is_stand_in() {
                true => counted::heading(),
                false => format!("{LEGEND}; times by {}\n{HEADING}", subject.clock()?),
            };
            self.print(heading, print);
        }
        Ok(())
    }

    /// One case's line; a wrong answer ends the run.
    fn case(&mut self, subject: &dyn Subject, case: &Case, print: &mut impl FnMut(String)) -> Result<()> {
        let label = case.label(subject.kind());
        let texts = match subject.is_stand_in() {
            true => counted::count(subject, case).map(|counted| {
                vec![if self.args.json { json!(counted).to_string() } else { counted.to_string() }]
            }),
            false => match time(subject, case, self.session.ceilings(), &self.args.budget()) {
                Ok(lines) => {
                    let texts = lines.iter().map(|line| self.text(line)).collect();
                    self.session.add(lines)?;
                    Ok(texts)
                }
                Err(why) => Err(why),
            },
        };
        match texts {
            Ok(texts) => texts.into_iter().for_each(|text| self.print(text, print)),
            Err(Refused::Wrong(why)) => bail!("{label} on {}: {why}", subject.name()),
            Err(Refused::NotTimed(why)) => self.not_timed(&label, &why, print),
        }
        Ok(())
    }

    fn not_timed(&self, label: &str, why: &str, print: &mut impl FnMut(String)) {
        let text = match self.args.json {
            true => json!({"case": label, "not_timed": why}).to_string(),
            false => format!("{label} | {why}"),
        };
        self.print(text, print);
    }

    fn text(&self, line: &Line) -> String {
        if !self.args.json {
            return line.to_string();
        }
        let seconds = line.latency_us_median * 1e-6;
        let mut value = json!(line);
        value["gflop_per_s"] = json!(line.work.flops / seconds / 1e9);
        value["gb_per_s"] = json!(line.work.bytes / seconds / 1e9);
        value["limit_share"] = json!(line.limit_share());
        value.to_string()
    }
}
