//! What `torch.save` writes: a zip archive of stored entries, `data.pkl` with the dictionary of tensors and `data/{key}`
//! with each storage's elements. Nothing in it is executed: see [`pickle`](super::pickle).

use super::pickle::{self, View};
use super::tensors::Tensor;
use crate::element::ElementType;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Cursor;
use zip::{CompressionMethod, ZipArchive};

/// How a zip archive begins; as a safetensors header's length it would be far beyond any file.
pub(crate) const MAGIC: &[u8] = b"PK\x03\x04";

/// Every tensor of the dictionary, by name. Views with strides, such as a saved transpose, are put in order.
pub(crate) fn tensors<'f>(file: &'f str, bytes: &'f [u8]) -> Result<BTreeMap<String, Tensor<'f>>> {
    let archive = Archive::open(file, bytes)?;
    let refuse = |item: &str, expected: &str, got: String| Error::format(file, item, expected, got);
    if let Some(order) = archive.entry("byteorder")
        && order != b"little"
    {
        return Err(refuse("byteorder", "little", String::from_utf8_lossy(order).into_owned()));
    }
    let Some(text) = archive.entry("data.pkl") else {
        return Err(refuse("data.pkl", "an entry of that name", "none".to_owned()));
    };
    let views = pickle::read(text)
        .map_err(|reason| refuse("data.pkl", "a dictionary of tensors as torch.save writes it", reason))?;
    let mut tensors = BTreeMap::new();
    // Copies are made for strided views only, and views of one storage share no more than the file could hold.
    let mut budget = bytes.len();
    for (name, view) in views {
        let element = match view.storage.as_str() {
            "FloatStorage" => ElementType::F32,
            "HalfStorage" => ElementType::F16,
            "BFloat16Storage" => ElementType::Bf16,
            other => return Err(refuse(&name, "F32, F16 or BF16", other.to_owned())),
        };
        let Some(storage) = archive.entry(&format!("data/{}", view.key)) else {
            return Err(refuse(&name, "its storage in the archive", format!("no data/{}", view.key)));
        };
        let Some(taken) = take(storage, element.bytes(), &view, &mut budget) else {
            let got = format!("{:?} with strides {:?} from {}", view.shape, view.strides, view.offset);
            return Err(refuse(&name, "a view of distinct elements inside its storage", got));
        };
        let tensor = Tensor { file, name: name.clone(), element, shape: view.shape, bytes: taken };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The stored entries of an archive, without the folder that all of them lie in.
struct Archive<'f> {
    entries: BTreeMap<String, &'f [u8]>,
}

impl<'f> Archive<'f> {
    fn open(file: &str, bytes: &'f [u8]) -> Result<Self> {
        let refuse = |got: String| Error::format(file, "header", "an archive as torch.save writes it", got);
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| refuse(e.to_string()))?;
        let mut entries = BTreeMap::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|e| refuse(e.to_string()))?;
            let name = entry.name().map_err(|e| refuse(e.to_string()))?.into_owned();
            if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
                return Err(refuse(format!("{name:?} compressed or encrypted")));
            }
            let place = entry.data_start().and_then(|start| Some((start, start.checked_add(entry.size())?)));
            let data = place
                .and_then(|(start, end)| bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?));
            let data = data.ok_or_else(|| refuse(format!("{name:?} beyond the file's end")))?;
            let inner = name.split_once('/').map_or(name.as_str(), |(_, inner)| inner).to_owned();
            if entries.insert(inner, data).is_some() {
                return Err(refuse(format!("{name:?} twice")));
            }
        }
        Ok(Self { entries })
    }

    fn entry(&self, name: &str) -> Option<&'f [u8]> {
        self.entries.get(name).copied()
    }
}

/// A view's elements in row-major order; `None` where it leaves its storage, repeats elements or exceeds the budget.
fn take<'f>(storage: &'f [u8], width: usize, view: &View, budget: &mut usize) -> Option<Cow<'f, [u8]>> {
    if view.shape.len() != view.strides.len() {
        return None;
    }
    let count = view.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
    if count == 0 {
        return Some(Cow::Borrowed(&[]));
    }
    let mut last = view.offset;
    let (mut expected, mut in_order) = (1usize, true);
    for (&size, &stride) in view.shape.iter().zip(&view.strides).rev() {
        if size > 1 && stride == 0 {
            return None;
        }
        last = last.checked_add((size - 1).checked_mul(stride)?)?;
        in_order &= size == 1 || stride == expected;
        expected = expected.checked_mul(size)?;
    }
    let end = last.checked_add(1)?.checked_mul(width)?;
    if end > storage.len() {
        return None;
    }
    if in_order {
        return storage.get(view.offset.checked_mul(width)?..end).map(Cow::Borrowed);
    }
    *budget = budget.checked_sub(count.checked_mul(width)?)?;
    let mut taken = Vec::with_capacity(count * width);
    let mut index = vec![0; view.shape.len()];
    for _ in 0..count {
        let place =
            view.offset + index.iter().zip(&view.strides).map(|(i, stride)| i * stride).sum::<usize>();
        taken.extend_from_slice(&storage[place * width..(place + 1) * width]);
        for (i, &size) in index.iter_mut().zip(&view.shape).rev() {
            *i += 1;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
    Some(Cow::Owned(taken))
}
