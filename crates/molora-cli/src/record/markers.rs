//! Tables in a markdown file, each between `<!-- record:begin NAME -->` and `<!-- record:end -->`. NAME is a record's file
//! without `.json`, or that and operations: `2026-11-23-host` or `2026-11-23-host/base+fused`.

use super::table;
use anyhow::{Context, Result, bail};
use molora_check::record::Record;
use std::path::Path;

const BEGIN: &str = "<!-- record:begin ";
const BEGIN_END: &str = " -->";
const END: &str = "<!-- record:end -->";

/// A text with every table between markers made anew by `table_of`, and the names in their order.
pub fn replace(text: &str, table_of: impl Fn(&str) -> Result<String>) -> Result<(String, Vec<String>)> {
    let (mut out, mut names, mut inside) = (String::new(), Vec::new(), false);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let (number, bare) = (number + 1, line.trim());
        let begin = bare.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(BEGIN_END));
        match (begin, bare == END) {
            (Some(_), _) if inside => bail!("line {number}: expected {END}, got {bare}"),
            (Some(name), _) => {
                let name = name.trim();
                let table = table_of(name).with_context(|| format!("line {number}: table {name}"))?;
                // A blank line on both sides: without it markdown takes the table for part of the comment.
                out += &format!("{BEGIN}{name}{BEGIN_END}\n\n{table}\n\n");
                names.push(name.to_owned());
                inside = true;
            }
            (None, true) if !inside => bail!("line {number}: {END} without a beginning"),
            (None, true) => {
                out += line;
                inside = false;
            }
            (None, false) if inside => {}
            (None, false) => out += line,
        }
    }
    match inside {
        true => bail!("expected {END} before the end of the file"),
        false => Ok((out, names)),
    }
}

/// The table of a name, from the records in a folder.
pub fn table_of(records: &Path, name: &str) -> Result<String> {
    let (stem, operations) = name.split_once('/').unwrap_or((name, ""));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if stem.is_empty() || !stem.chars().all(is_plain) {
        bail!("expected a record's file name without .json, got {stem:?}");
    }
    let operations: Vec<String> =
        operations.split('+').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let record = Record::read(&records.join(format!("{stem}.json"))).map_err(anyhow::Error::msg)?;
    table::markdown(&record, &operations)
}

/// Makes the tables of a file anew; returns their names.
pub fn write(file: &Path, records: &Path) -> Result<Vec<String>> {
    let (old, new, names) = renewed(file, records)?;
    if names.is_empty() {
        bail!("{}: no table: expected a line {BEGIN}NAME{BEGIN_END} and a line {END}", file.display());
    }
    if old != new {
        let part = file.with_extension("part");
        std::fs::write(&part, new)
            .and_then(|()| std::fs::rename(&part, file))
            .with_context(|| format!("{}: cannot be written", file.display()))?;
    }
    Ok(names)
}

/// Fails with the first line that differs where a file's tables are not what the records give; returns their names.
pub fn check(file: &Path, records: &Path) -> Result<Vec<String>> {
    let (old, new, names) = renewed(file, records)?;
    if old == new {
        return Ok(names);
    }
    let differing = old.lines().zip(new.lines()).position(|(old, new)| old != new);
    let at = differing.unwrap_or_else(|| old.lines().count().min(new.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("the end").to_owned();
    bail!(
        "{}, line {}: the records give\n  {}\nand the file has\n  {}\nmolora record table --write {} makes it anew",
        file.display(),
        at + 1,
        line(&new),
        line(&old),
        file.display()
    )
}

fn renewed(file: &Path, records: &Path) -> Result<(String, String, Vec<String>)> {
    let old = std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    let (new, names) =
        replace(&old, |name| table_of(records, name)).with_context(|| file.display().to_string())?;
    Ok((old, new, names))
}

#[cfg(test)]
mod tests {
    use super::super::series::example::{line, record};
    use super::*;
    use molora_check::report::OURS;

    const TEXT: &str = "# Title\n<!-- record:begin one -->\nold\n\n<!-- record:end -->\nbetween\n\
                        <!-- record:begin two/base -->\n<!-- record:end -->\nafter";

    #[test]
    fn only_what_lies_between_markers_changes() {
        let (text, names) = replace(TEXT, |name| Ok(format!("table of {name}"))).unwrap();
        assert_eq!(names, ["one", "two/base"]);
        assert_eq!(
            text,
            "# Title\n<!-- record:begin one -->\n\ntable of one\n\n<!-- record:end -->\nbetween\n\
             <!-- record:begin two/base -->\n\ntable of two/base\n\n<!-- record:end -->\nafter"
        );
        let (again, _) = replace(&text, |name| Ok(format!("table of {name}"))).unwrap();
        assert_eq!(again, text);
    }

    #[test]
    fn markers_without_partners_are_refused() {
        for (text, why) in [
            ("<!-- record:begin a -->\n", "before the end of the file"),
            ("<!-- record:end -->\n", "without a beginning"),
            ("<!-- record:begin a -->\n<!-- record:begin b -->\n<!-- record:end -->\n", "line 2: expected"),
        ] {
            let got = replace(text, |_| Ok(String::new())).unwrap_err().to_string();
            assert!(got.contains(why), "{got}");
        }
    }

    #[test]
    fn a_file_is_written_then_holds_until_a_record_or_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, path) = (folder.path().join("README.md"), folder.path().join("one.json"));
        let mut one = record(vec![line("base/cpu/f32/t1", OURS, 10.0)]);
        one.write(&path).unwrap();
        std::fs::write(&file, "x\n<!-- record:begin one/base -->\n<!-- record:end -->\n").unwrap();
        let why = check(&file, folder.path()).unwrap_err().to_string();
        assert!(why.contains("line 3: the records give"), "{why}");
        assert_eq!(write(&file, folder.path()).unwrap(), ["one/base"]);
        assert_eq!(check(&file, folder.path()).unwrap(), ["one/base"]);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("x\n<!--") && text.contains("| `base/cpu/f32/t1` | 10.0 [9.00, 11.0] |"));
        std::fs::write(&file, text.replace("10.0 [", "9.9 [")).unwrap();
        let why = check(&file, folder.path()).unwrap_err().to_string();
        assert!(why.contains("9.9 ["), "{why}");
        write(&file, folder.path()).unwrap();
        one.lines[0].latency_us_median = 10.5;
        one.write(&path).unwrap();
        assert!(check(&file, folder.path()).is_err());
    }

    #[test]
    fn missing_records_and_other_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let why = format!("{:#}", table_of(folder.path(), "absent").unwrap_err());
        assert!(why.contains("absent.json"), "{why}");
        assert!(table_of(folder.path(), "../x").is_err() && table_of(folder.path(), "").is_err());
        let file = folder.path().join("empty.md");
        std::fs::write(&file, "no table\n").unwrap();
        assert!(write(&file, folder.path()).unwrap_err().to_string().contains("no table"));
        assert_eq!(check(&file, folder.path()).unwrap(), Vec::<String>::new());
        let other = record(Vec::new());
        let text = serde_json::to_string(&other).unwrap().replace("\"format\":1", "\"format\":2");
        std::fs::write(folder.path().join("two.json"), text).unwrap();
        let why = format!("{:#}", table_of(folder.path(), "two").unwrap_err());
        assert!(why.contains("expected a record of format 1, got format 2"), "{why}");
    }
}
