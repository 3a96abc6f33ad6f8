//! Arrays in files: `.npy`, little-endian, C order, of the types that the protocol uses.

use bytemuck::Pod;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// A header longer than this is refused: those of plain arrays take 118 bytes.
const HEADER_MOST: usize = 1 << 16;

/// An array's shape and its values, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<T> {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// As many as the product of the sizes.
    pub values: Vec<T>,
}

/// What an array may hold.
pub trait Number: Pod {
    /// The type's name in a header.
    const DESCR: &'static str;
}

impl Number for f32 {
    const DESCR: &'static str = "<f4";
}
impl Number for f64 {
    const DESCR: &'static str = "<f8";
}
impl Number for i32 {
    const DESCR: &'static str = "<i4";
}

/// Reads an array of numbers of one type; the error names the file.
pub fn read<T: Number>(path: &Path) -> Result<Array<T>, String> {
    let file = File::open(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let len = file.metadata().map_err(|why| format!("{}: {why}", path.display()))?.len();
    from_reader(file, len).map_err(|why| format!("{}: {why}", path.display()))
}

/// Reads from `len` bytes.
fn from_reader<T: Number>(mut file: impl Read, len: u64) -> Result<Array<T>, String> {
    if cfg!(target_endian = "big") {
        return Err("arrays are little-endian, and this machine is not".into());
    }
    let io = |why: std::io::Error| format!("the header ends early: {why}");
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(io)?;
    let version = match start {
        [0x93, b'N', b'U', b'M', b'P', b'Y', version @ 1..=3, _] => version,
        _ => return Err(format!("expected an .npy file of version 1, 2 or 3, got the bytes {start:02x?}")),
    };
    let mut size = [0; 4];
    let size_len = if version == 1 { 2 } else { 4 };
    file.read_exact(&mut size[..size_len]).map_err(io)?;
    let header_len = u32::from_le_bytes(size) as usize;
    if header_len > HEADER_MOST {
        return Err(format!("expected a header of at most {HEADER_MOST} bytes, got {header_len}"));
    }
    let mut header = vec![0; header_len];
    file.read_exact(&mut header).map_err(io)?;
    let shape = shape::<T>(&String::from_utf8_lossy(&header))?;
    let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let bytes = count.and_then(|n| n.checked_mul(size_of::<T>()));
    let rest = len.saturating_sub((8 + size_len + header_len) as u64);
    // Compared before memory is taken: a damaged shape must not ask for all of it.
    if bytes.is_none_or(|bytes| bytes as u64 != rest) {
        return Err(format!("expected the values of {shape:?}, got {rest} bytes"));
    }
    let mut values = vec![T::zeroed(); count.unwrap_or(0)];
    file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(|why| format!("the values: {why}"))?;
    Ok(Array { shape, values })
}

/// The shape that a header names; refuses other types and orders.
fn shape<T: Number>(header: &str) -> Result<Vec<usize>, String> {
    let after = |key: &str| {
        let at = header.find(key).ok_or_else(|| format!("expected {key} in the header, got {header:?}"))?;
        Ok::<_, String>(header[at + key.len()..].trim_start_matches([':', ' ']))
    };
    let descr = after("'descr'")?;
    if !descr.starts_with(&format!("'{}'", T::DESCR)) {
        let got = descr.split(',').next().unwrap_or_default();
        return Err(format!("expected elements '{}', got {got}", T::DESCR));
    }
    if !after("'fortran_order'")?.starts_with("False") {
        return Err("expected rows one after another, got columns (fortran_order)".into());
    }
    let text = after("'shape'")?;
    let bad = || format!("expected a shape, got {text:?}");
    let inside = text.strip_prefix('(').and_then(|text| text.split_once(')')).ok_or_else(bad)?.0;
    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().map_err(|_| bad())).collect()
}

/// Writes an array. The file is whole or not there under its name.
pub fn write<T: Number>(path: &Path, shape: &[usize], values: &[T]) -> Result<(), String> {
    let named = |why: std::io::Error| format!("{}: {why}", path.display());
    let expected: usize = shape.iter().product();
    if expected != values.len() {
        return Err(format!("{}: expected {expected} values, got {}", path.display(), values.len()));
    }
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut header =
        format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", T::DESCR, sizes.trim_end());
    // Values begin at a multiple of 64 bytes; a line break ends the header.
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let part = path.with_extension("part");
    let mut file = BufWriter::new(File::create(&part).map_err(named)?);
    let length = u16::try_from(header.len()).map_err(|_| format!("{}: too many sizes", path.display()))?;
    let pieces: [&[u8]; 4] =
        [b"\x93NUMPY\x01\x00", &length.to_le_bytes(), header.as_bytes(), bytemuck::cast_slice(values)];
    pieces.iter().try_for_each(|piece| file.write_all(piece)).map_err(named)?;
    file.flush().map_err(named)?;
    std::fs::rename(&part, path).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x93, b'N', b'U', b'M', b'P', b'Y', version, 0];
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(values);
        bytes
    }

    fn parse<T: Number>(bytes: &[u8]) -> Result<Array<T>, String> {
        from_reader(bytes, bytes.len() as u64)
    }

    const HEADER: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }\n";

    #[test]
    fn what_is_written_is_read_again() {
        let folder = std::env::temp_dir().join(format!("molora-npy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.npy");
        for shape in [&[2, 3][..], &[6], &[6, 0], &[]] {
            let values: Vec<f64> = (0..shape.iter().product()).map(|i: usize| i as f64 - 0.5).collect();
            write(&path, shape, &values).unwrap();
            assert_eq!(read::<f64>(&path).unwrap(), Array { shape: shape.to_vec(), values });
            // The values begin where numpy aligns them.
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!((bytes.len() - 8 * shape.iter().product::<usize>()) % 64, 0);
        }
        assert!(write(&path, &[2, 2], &[0f32; 3]).unwrap_err().contains("expected 4 values, got 3"));
        assert!(read::<i32>(&path).unwrap_err().contains("a.npy"));
        assert!(read::<i32>(&folder.join("none.npy")).unwrap_err().contains("none.npy"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn versions_with_short_and_long_lengths() {
        let values = [1f32, 2.0];
        for version in [1, 2, 3] {
            let array = parse::<f32>(&file(version, HEADER, bytemuck::cast_slice(&values))).unwrap();
            assert_eq!(array, Array { shape: vec![2, 1], values: values.to_vec() });
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let eight = [0; 8];
        let whole = file(1, HEADER, &eight);
        for cut in 0..whole.len() {
            parse::<f32>(&whole[..cut]).unwrap_err();
        }
        let refused = |bytes: &[u8], part: &str| {
            let why = parse::<f32>(bytes).unwrap_err();
            assert!(why.contains(part), "{why}");
        };
        refused(&file(1, HEADER, &[0; 9]), "got 9 bytes");
        refused(b"not an array of numbers", "expected an .npy file");
        refused(&file(9, HEADER, &eight), "expected an .npy file");
        refused(&file(1, &HEADER.replace("<f4", ">f4"), &eight), "expected elements '<f4'");
        refused(&file(1, &HEADER.replace("<f4", "<i4"), &eight), "expected elements '<f4'");
        refused(&file(1, &HEADER.replace("False", "True"), &eight), "fortran_order");
        refused(&file(1, &HEADER.replace("(2, 1)", "(2, x)"), &eight), "expected a shape");
        refused(&file(1, &HEADER.replace("(2, 1)", "2"), &eight), "expected a shape");
        refused(&file(1, &HEADER.replace("(2, 1)", "(99999999999, 99999999999)"), &eight), "got 8 bytes");
        refused(&file(1, &HEADER.replace("'shape'", "'form'"), &eight), "expected 'shape'");
        refused(&file(2, &" ".repeat(HEADER_MOST + 1), &eight), "at most");
    }
}
