//! Compiled pipelines that outlive the process, where the driver gives them out (Vulkan).
//!
//! wgpu takes a cache's bytes unseen: whoever hands over others than those it gave out risks undefined behaviour inside a
//! driver. So a file is ours or it is ignored: a seal (SHA-256) over all of it, and inside a key that names the adapter, its
//! driver, this library's version and its shaders. A seal finds accidents, not intent: on Unix a file that others may
//! write is ignored too.

use super::{Result, Wgpu};
use pollster::block_on;
use sha2::{Digest, Sha256};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, MutexGuard};

const MAGIC: &[u8; 16] = b"molora pipelines";
const SEAL: usize = 32;
/// Some drivers put a header around what they were given, and know no more than before.
const HEADER: usize = 64;

/// What a device's pipeline cache began with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CacheState {
    /// Nobody asked for one.
    #[default]
    Off,
    /// The device has none; the reason.
    Unsupported(String),
    /// Nothing; the reason, such as a file that is not there yet or was ignored.
    Empty(String),
    /// So many bytes of an earlier run.
    Loaded(usize),
}

impl std::fmt::Display for CacheState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => write!(f, "no pipeline cache"),
            Self::Unsupported(why) => write!(f, "no pipeline cache: {why}"),
            Self::Empty(why) => write!(f, "an empty pipeline cache: {why}"),
            Self::Loaded(bytes) => write!(f, "a pipeline cache of {bytes} bytes"),
        }
    }
}

/// The cache of a device and where it is kept.
#[derive(Debug, Default)]
pub(super) struct Cache {
    pub(super) pipelines: Option<wgpu::PipelineCache>,
    state: CacheState,
    file: Option<PathBuf>,
    /// What the file holds, sealed.
    kept: Vec<u8>,
}

impl Wgpu {
    /// Reads compiled pipelines from this folder and uses them from here on, on all clones; [`Self::save_cache`] writes
    /// them there. A missing, damaged or foreign file is an empty cache, and the state says why.
    ///
    /// The folder should be the user's own: what lies there reaches the driver.
    pub fn use_cache(&self, folder: &Path) -> CacheState {
        let file = wgpu::util::pipeline_cache_key(self.info()).map(|name| folder.join(format!("{name}.bin")));
        let content = match &file {
            Some(file) => read(file),
            None => Ok(Vec::new()),
        };
        self.begin_cache(content, file)
    }

    /// As [`Self::use_cache`], from what [`Self::cache_data`] gave; no bytes begin an empty one.
    pub fn use_cache_data(&self, sealed: &[u8]) -> CacheState {
        let content = if sealed.is_empty() { Err("no bytes were given".into()) } else { Ok(sealed.to_vec()) };
        self.begin_cache(content, None)
    }

    /// What the cache began with.
    pub fn cache_state(&self) -> CacheState {
        self.cache().state.clone()
    }

    /// The cache as it is now, sealed: for [`Self::use_cache_data`] in another process. None where there is none.
    pub fn cache_data(&self) -> Option<Vec<u8>> {
        let data = self.cache().pipelines.as_ref()?.get_data()?;
        Some(seal(&self.cache_key(), &data))
    }

    /// Writes the cache into the folder of [`Self::use_cache`], at once or not at all; whether there was something new to
    /// write: pipelines are only ever added to a cache. Nothing happens where there is no cache, or no folder.
    pub fn save_cache(&self) -> Result<bool> {
        let (Some(sealed), Some(file)) = (self.cache_data(), self.cache().file.clone()) else {
            return Ok(false);
        };
        let grown = sealed.len().checked_sub(self.cache().kept.len());
        if grown.is_some_and(|bytes| bytes <= HEADER) {
            return Ok(false);
        }
        write(&file, &sealed).map_err(|why| self.failed(format!("{}: {why}", file.display())))?;
        self.cache().kept = sealed;
        Ok(true)
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.shared.cache.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// What must agree: the adapter and its driver, this library, its shaders.
    fn cache_key(&self) -> String {
        let adapter = wgpu::util::pipeline_cache_key(self.info()).unwrap_or_default();
        let (version, shaders) = (env!("CARGO_PKG_VERSION"), &*SHADERS);
        format!("{adapter}, {}, molora {version}, shaders {shaders}", self.describe())
    }

    fn begin_cache(
        &self,
        content: std::result::Result<Vec<u8>, String>,
        file: Option<PathBuf>,
    ) -> CacheState {
        let mut cache = Cache { file, ..Cache::default() };
        cache.state = if !self.device().features().contains(wgpu::Features::PIPELINE_CACHE) {
            CacheState::Unsupported("the device was made without the feature PIPELINE_CACHE".into())
        } else {
            let opened = content.and_then(|sealed| Ok((open(&self.cache_key(), &sealed)?.to_vec(), sealed)));
            let state = opened.and_then(|(data, sealed)| {
                cache.pipelines = Some(self.pipeline_cache(Some(&data))?);
                cache.kept = sealed;
                Ok(CacheState::Loaded(data.len()))
            });
            state
                .or_else(|why| {
                    cache.pipelines = Some(self.pipeline_cache(None)?);
                    Ok::<_, String>(CacheState::Empty(why))
                })
                .unwrap_or_else(CacheState::Unsupported)
        };
        let state = cache.state.clone();
        *self.cache() = cache;
        state
    }

    fn pipeline_cache(&self, data: Option<&[u8]>) -> std::result::Result<wgpu::PipelineCache, String> {
        let scope = self.device().push_error_scope(wgpu::ErrorFilter::Validation);
        // Without the fallback the reason is told instead of swallowed.
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("molora"), data, fallback: false };
        // SAFETY: `data` is what `PipelineCache::get_data` returned on a device of the same key, as far as a file can
        // show: `open` found the seal over it whole and the key, which names adapter and driver, equal to ours.
        let cache = unsafe { self.device().create_pipeline_cache(&descriptor) };
        match block_on(scope.pop()) {
            None => Ok(cache),
            Some(error) => Err(error.to_string()),
        }
    }
}

/// The seal, then what it covers: magic, the key's length, key, data.
fn seal(key: &str, data: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; SEAL];
    sealed.extend_from_slice(MAGIC);
    sealed.extend_from_slice(&(key.len() as u32).to_le_bytes());
    sealed.extend_from_slice(key.as_bytes());
    sealed.extend_from_slice(data);
    let hash = Sha256::digest(&sealed[SEAL..]);
    sealed[..SEAL].copy_from_slice(&hash);
    sealed
}

/// The data under an unbroken seal with this key, or why not.
fn open<'a>(key: &str, sealed: &'a [u8]) -> std::result::Result<&'a [u8], String> {
    let (hash, rest) = sealed.split_at_checked(SEAL).ok_or("ignored: too short")?;
    let body = rest.strip_prefix(MAGIC.as_slice()).ok_or("ignored: not a pipeline cache of molora's")?;
    if Sha256::digest(rest).as_slice() != hash {
        return Err("ignored: damaged, its SHA-256 is another".into());
    }
    let (length, body) = body.split_at_checked(4).ok_or("ignored: too short")?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    let (theirs, data) = body.split_at_checked(length).ok_or("ignored: too short")?;
    if theirs != key.as_bytes() {
        return Err(format!("ignored: made for {}; this is {key}", String::from_utf8_lossy(theirs)));
    }
    Ok(data)
}

fn read(file: &Path) -> std::result::Result<Vec<u8>, String> {
    let told = |error: std::io::Error| format!("{}: {error}", file.display());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(file).map_err(told)?.permissions().mode();
        if mode & 0o022 != 0 {
            return Err(format!(
                "{}: ignored: others may write it (mode {:o})",
                file.display(),
                mode & 0o777
            ));
        }
    }
    std::fs::read(file).map_err(told)
}

/// Beside it, then renamed: a reader finds the old file or the new one.
fn write(file: &Path, content: &[u8]) -> std::io::Result<()> {
    file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let beside = file.with_extension(format!("{}.new", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&beside).and_then(|mut open| {
        open.write_all(content)?;
        open.sync_all()
    });
    written.and_then(|()| std::fs::rename(&beside, file)).inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

/// The hash of all texts that kernels are made of.
static SHADERS: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    TEXTS.iter().for_each(|text| hash.update(text));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
});

const TEXTS: &[&str] = &[
    include_str!("text.rs"),
    include_str!("../../../shaders/attend.wgsl"),
    include_str!("../../../shaders/base.wgsl"),
    include_str!("../../../shaders/base_lanes.wgsl"),
    include_str!("../../../shaders/base_matrix.wgsl"),
    include_str!("../../../shaders/common.wgsl"),
    include_str!("../../../shaders/expand.wgsl"),
    include_str!("../../../shaders/expand_lanes.wgsl"),
    include_str!("../../../shaders/fused.wgsl"),
    include_str!("../../../shaders/fused_columns.wgsl"),
    include_str!("../../../shaders/fused_concat.wgsl"),
    include_str!("../../../shaders/fused_dense.wgsl"),
    include_str!("../../../shaders/fused_few.wgsl"),
    include_str!("../../../shaders/fused_few_shrink.wgsl"),
    include_str!("../../../shaders/fused_gate.wgsl"),
    include_str!("../../../shaders/fused_gate_given.wgsl"),
    include_str!("../../../shaders/fused_gate_routed.wgsl"),
    include_str!("../../../shaders/fused_lanes.wgsl"),
    include_str!("../../../shaders/fused_lanes_sums.wgsl"),
    include_str!("../../../shaders/fused_side.wgsl"),
    include_str!("../../../shaders/grouped.wgsl"),
    include_str!("../../../shaders/grouped_combine.wgsl"),
    include_str!("../../../shaders/grouped_finish.wgsl"),
    include_str!("../../../shaders/grouped_lanes_loras.wgsl"),
    include_str!("../../../shaders/grouped_loras.wgsl"),
    include_str!("../../../shaders/grouped_shrink.wgsl"),
    include_str!("../../../shaders/grouped_shrink_lanes.wgsl"),
    include_str!("../../../shaders/grouped_lanes.wgsl"),
    include_str!("../../../shaders/lane.wgsl"),
    include_str!("../../../shaders/lanes.wgsl"),
    include_str!("../../../shaders/lanes_put.wgsl"),
    include_str!("../../../shaders/lanes_put_packed.wgsl"),
    include_str!("../../../shaders/lanes_ranks.wgsl"),
    include_str!("../../../shaders/lanes_routes.wgsl"),
    include_str!("../../../shaders/lanes_rows_shared.wgsl"),
    include_str!("../../../shaders/plan.wgsl"),
    include_str!("../../../shaders/route.wgsl"),
    include_str!("../../../shaders/route_list.wgsl"),
    include_str!("../../../shaders/route_many.wgsl"),
    include_str!("../../../shaders/route_masked.wgsl"),
    include_str!("../../../shaders/route_put.wgsl"),
    include_str!("../../../shaders/route_score.wgsl"),
    include_str!("../../../shaders/route_token.wgsl"),
    include_str!("../../../shaders/rows.wgsl"),
    include_str!("../../../shaders/shrink.wgsl"),
    include_str!("../../../shaders/shrink_lanes.wgsl"),
    include_str!("../../../shaders/shrink_rank_sum.wgsl"),
    include_str!("../../../shaders/subgroup.wgsl"),
    include_str!("../../../shaders/sum.wgsl"),
    include_str!("../../../shaders/tile.wgsl"),
    include_str!("../../../shaders/tree.wgsl"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shader_is_in_the_key() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(TEXTS.contains(&text.as_str()), "{} is missing in TEXTS", path.display());
        }
        assert_eq!(SHADERS.len(), 16);
    }

    #[test]
    fn only_whole_files_of_our_own_are_opened() {
        let sealed = seal("this card", b"compiled");
        assert_eq!(open("this card", &sealed).unwrap(), b"compiled");
        assert_eq!(open("this card", &seal("this card", b"")).unwrap(), b"");
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            let why = open("this card", &damaged).unwrap_err();
            assert!(why.contains("damaged") || why.contains("not a pipeline cache"), "{at}: {why}");
            open("this card", &sealed[..at]).unwrap_err();
        }
        let longer = [&sealed[..], b"!"].concat();
        assert!(open("this card", &longer).unwrap_err().contains("damaged"));
        let other = open("another card", &sealed).unwrap_err();
        assert_eq!(other, "ignored: made for this card; this is another card");
    }
}
