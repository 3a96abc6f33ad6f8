//! Reading a file of tensors that nobody vouches for: bounded reads, one check of the header, then views.
//! Safetensors, or what `torch.save` writes (see [`torch`]).

use super::{torch, widen};
use crate::element::ElementType;
use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::Path;

/// Far above any adapter: the largest published ones are a few GB.
const MAX_TENSOR_FILE_BYTES: u64 = 16 << 30;

/// A whole file in memory, its header not yet looked at.
pub(crate) struct TensorFile {
    file: String,
    bytes: Vec<u8>,
}

/// One tensor of a [`TensorFile`]: little-endian, row-major, of an element type that molora computes with.
#[derive(Clone)]
pub(crate) struct Tensor<'f> {
    pub(crate) file: &'f str,
    pub(crate) name: String,
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Cow<'f, [u8]>,
}

/// Reads a regular file of at most `limit` bytes. Folders, pipes and devices are refused before they are opened.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = path.display();
    let unreadable = |e: std::io::Error| Error::format(file.to_string(), "file", "a readable file", e);
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Error::format(file, "file", "a regular file", "a folder or a special file"));
    }
    if metadata.len() > limit {
        let expected = format!("at most {limit} bytes");
        return Err(Error::format(file, "file", expected, metadata.len()));
    }
    let mut bytes = Vec::new();
    // The length was true a moment ago: `take` holds if the file grows meanwhile.
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    bytes
        .try_reserve_exact(length)
        .map_err(|e| Error::format(file.to_string(), "file", "memory for the whole file", e))?;
    std::fs::File::open(path).map_err(unreadable)?.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

impl TensorFile {
    /// Reads the file; nothing is parsed yet.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Ok(Self { file: path.display().to_string(), bytes: read_bounded(path, MAX_TENSOR_FILE_BYTES)? })
    }

    /// The file as it was named.
    pub(crate) fn name(&self) -> &str {
        &self.file
    }

    /// Every tensor, by name. Refuses a broken header and element types that molora does not compute with.
    pub(crate) fn tensors(&self) -> Result<BTreeMap<String, Tensor<'_>>> {
        if self.bytes.starts_with(torch::MAGIC) {
            return torch::tensors(&self.file, &self.bytes);
        }
        self.check_header()?;
        let parsed = SafeTensors::deserialize(&self.bytes)
            .map_err(|e| Error::format(&self.file, "header", "a safetensors header that fits the file", e))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in parsed.tensors() {
            let element = match view.dtype() {
                Dtype::F32 => ElementType::F32,
                Dtype::F16 => ElementType::F16,
                Dtype::BF16 => ElementType::Bf16,
                other => return Err(Error::format(&self.file, name, "F32, F16 or BF16", other)),
            };
            let (shape, bytes) = (view.shape().to_vec(), Cow::Borrowed(view.data()));
            tensors.insert(name.clone(), Tensor { file: &self.file, name, element, shape, bytes });
        }
        Ok(tensors)
    }

    /// What the parser does not guard: a repeated name (it keeps the last one), and data ends so large that
    /// adding the header's length to them overflows.
    fn check_header(&self) -> Result<()> {
        let refuse = |got: String| {
            Error::format(
                &self.file,
                "header",
                "a length of 8 bytes, then that much JSON, then the data",
                got,
            )
        };
        let (length, rest) = self
            .bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| refuse(format!("{} bytes", self.bytes.len())))?;
        let length = u64::from_le_bytes(*length);
        let header = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(..length))
            .ok_or_else(|| refuse(format!("a header of {length} bytes in {} bytes", self.bytes.len())))?;
        let data_bytes = (rest.len() - header.len()) as u64;
        let header = std::str::from_utf8(header).map_err(|e| refuse(e.to_string()))?;
        let mut json = serde_json::Deserializer::from_str(header);
        json.deserialize_map(HeaderCheck { data_bytes }).map_err(|e| refuse(e.to_string()))
    }
}

impl Tensor<'_> {
    /// Rows and columns; refuses anything that is not 2-D, and sizes of 0.
    pub(crate) fn matrix(&self) -> Result<(usize, usize)> {
        match self.shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
            _ => Err(self.refuse("a 2-D shape without a 0", format!("{:?}", self.shape))),
        }
    }

    /// Refuses weights that are NaN or infinite.
    pub(crate) fn check_finite(&self) -> Result<()> {
        match widen(self.element, &self.bytes).enumerate().find(|(_, w)| !w.is_finite()) {
            None => Ok(()),
            Some((index, weight)) => {
                Err(self.refuse("finite weights", format!("{weight} at element {index}")))
            }
        }
    }

    /// The weights, widened exactly.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        widen(self.element, &self.bytes).collect()
    }

    /// An error about this tensor.
    pub(crate) fn refuse(&self, expected: impl ToString, got: impl ToString) -> Error {
        Error::format(self.file, &self.name, expected, got)
    }
}

/// A number in a tensor's name: decimal, without a sign or leading zeros, so that no two names mean one number.
pub(crate) fn index(text: &str) -> Option<usize> {
    text.parse().ok().filter(|index: &usize| index.to_string() == text)
}

struct HeaderCheck {
    data_bytes: u64,
}

#[derive(serde::Deserialize)]
struct Span {
    data_offsets: (u64, u64),
}

impl<'de> Visitor<'de> for HeaderCheck {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = access.next_key::<String>()? {
            if name == "__metadata__" {
                access.next_value::<IgnoredAny>()?;
            } else {
                let end = access.next_value::<Span>()?.data_offsets.1;
                if end > self.data_bytes {
                    let data_bytes = self.data_bytes;
                    return Err(A::Error::custom(format!(
                        "{name:?} ends at {end} of {data_bytes} data bytes"
                    )));
                }
            }
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("the tensor {name:?} twice")));
            }
            seen.insert(name);
        }
        Ok(())
    }
}
