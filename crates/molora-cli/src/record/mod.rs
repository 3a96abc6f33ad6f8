//! `molora record`: what runs of the harness left behind, compared, drawn and put into the README.

mod axis;
mod bars;
mod canvas;
pub mod compare;
pub mod markers;
#[cfg(test)]
mod picture_tests;
mod place;
mod png;
mod roofline;
pub mod series;
pub mod table;
mod text;

pub use bars::{Unit, bars};
pub use png::{SCALE, png};
pub use roofline::roofline;

use anyhow::{Context, Result, bail};
use molora_check::record::Record;
use std::path::{Path, PathBuf};

/// Where the README's tables look for records.
const RECORDS: &str = "benches/record";

/// Compare recorded runs, draw them, or make tables of them
#[derive(Debug, Clone, clap::Args)]
pub struct RecordArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Compare two records: ratios of medians, geometric means, what is noise and what is missing
    Compare {
        /// The earlier record
        a: PathBuf,
        /// The later record
        b: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Draw a roofline and, where other series ran, bars beside them, for each device, as SVG and PNG
    Plot(PlotArgs),
    /// Print a record's table as markdown, or put tables between a file's markers
    Table(TableArgs),
}

#[derive(Debug, Clone, Default, clap::Args)]
struct PlotArgs {
    /// The record
    file: PathBuf,
    /// The folder for the pictures [default: the record's]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Only these operations (`base`, `delta`, ..)
    #[arg(long, value_delimiter = ',')]
    op: Vec<String>,
    /// What the bars count in
    #[arg(long, value_enum, default_value_t = Unit::Molora)]
    unit: Unit,
}

#[derive(Debug, Clone, clap::Args)]
struct TableArgs {
    /// Records to print
    #[arg(required_unless_present_any = ["write", "check"], conflicts_with_all = ["write", "check"])]
    files: Vec<PathBuf>,
    /// Only these operations (`base`, `delta`, ..)
    #[arg(long, value_delimiter = ',', requires = "files")]
    op: Vec<String>,
    /// Make the tables between this file's markers anew
    #[arg(long, value_name = "MARKDOWN", conflicts_with = "check")]
    write: Option<PathBuf>,
    /// Fail where this file's tables are not what the records give
    #[arg(long, value_name = "MARKDOWN")]
    check: Option<PathBuf>,
    /// The folder of the records that markers name [default: benches/record beside the file]
    #[arg(long, value_name = "FOLDER")]
    records: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &RecordArgs) -> Result<()> {
    match &args.command {
        Command::Compare { a, b, json } => compare_files(a, b, *json),
        Command::Plot(args) => {
            for path in plot(&read(&args.file)?, args)? {
                println!("{}", path.display());
            }
            Ok(())
        }
        Command::Table(args) => tables(args),
    }
}

/// Prints the comparison of two files.
pub fn compare_files(a: &Path, b: &Path, json: bool) -> Result<()> {
    let comparison = compare::compare(&read(a)?, &read(b)?);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&comparison)?),
        false => print!("{comparison}"),
    }
    Ok(())
}

fn read(path: &Path) -> Result<Record> {
    Record::read(path).map_err(anyhow::Error::msg)
}

fn tables(args: &TableArgs) -> Result<()> {
    for file in &args.files {
        let table = table::markdown(&read(file)?, &args.op);
        println!("{}\n", table.with_context(|| file.display().to_string())?);
    }
    if let Some((file, write)) =
        args.write.as_ref().map(|f| (f, true)).or(args.check.as_ref().map(|f| (f, false)))
    {
        let records = args.records.clone().unwrap_or_else(|| file.with_file_name(RECORDS));
        let names = if write { markers::write(file, &records)? } else { markers::check(file, &records)? };
        let done = if write { "written" } else { "as the records give" };
        println!("{}: {} tables {done}", file.display(), names.len());
    }
    Ok(())
}

/// Draws the record in a file beside it; returns the pictures, none where no case was timed.
pub fn draw(file: &Path) -> Result<Vec<PathBuf>> {
    let record = read(file)?;
    if series::devices(&record).is_empty() {
        return Ok(Vec::new());
    }
    plot(&record, &PlotArgs { file: file.into(), ..PlotArgs::default() })
}

/// Draws a record; returns the files.
fn plot(record: &Record, args: &PlotArgs) -> Result<Vec<PathBuf>> {
    let mut record = record.clone();
    record
        .lines
        .retain(|line| args.op.is_empty() || args.op.iter().any(|op| op == series::operation(&line.case)));
    let devices = series::devices(&record);
    if devices.is_empty() {
        bail!("{}: no line of molora's with a time to draw", args.file.display());
    }
    let out = args.out.clone().unwrap_or_else(|| args.file.with_file_name(""));
    if !out.as_os_str().is_empty() {
        std::fs::create_dir_all(&out).with_context(|| format!("{}: cannot be made", out.display()))?;
    }
    let stem = args.file.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let mut files = Vec::new();
    for (number, device) in devices.iter().enumerate() {
        // Names of devices are long and have blanks; the first device is the one without a number.
        let number = if number == 0 { String::new() } else { format!("-{}", number + 1) };
        let mut pictures = vec![("roofline", roofline(&record, device)?)];
        pictures.extend(bars(&record, device, args.unit)?.map(|svg| ("bars", svg)));
        for (kind, svg) in pictures {
            let path = out.join(format!("{stem}-{kind}{number}.svg"));
            save(&path, svg.as_bytes())?;
            let picture = path.with_extension("png");
            save(&picture, &png(&svg)?)?;
            files.extend([path, picture]);
        }
    }
    Ok(files)
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("{}: cannot be written", path.display()))
}
