//! How the hardware would serve a warp's access: wavefronts of shared memory, sectors of global memory.

use super::Lanes;

/// Wavefronts of a shared access and the least that its phases need.
///
/// 32 banks of 4 bytes. Accesses of 8 bytes are served by half warps, of 16 by quarters; in each phase the bank with the most
/// distinct words sets the number. The same word for several lanes is free.
pub fn wavefronts(lanes: &Lanes) -> (u64, u64) {
    let unit = lanes.bytes.max(4);
    let shift = unit.trailing_zeros();
    // An aligned access of a unit covers whole banks: groups of banks serve units.
    let groups = (128 / unit) as usize;
    let phase_lanes = 128 / unit;
    let (mut total, mut ideal) = (0, 0);
    for phase in 0..32 / phase_lanes {
        let base = phase * phase_lanes;
        let mask = lanes.mask & (u32::MAX >> (32 - phase_lanes)) << base;
        if mask != 0 {
            total += one_each(lanes, mask, shift, groups).unwrap_or_else(|| most(lanes, mask, shift, groups));
            ideal += 1;
        }
    }
    (total, ideal)
}

/// The usual phase: no group of banks has more than one unit.
fn one_each(lanes: &Lanes, mask: u32, shift: u32, groups: usize) -> Option<u64> {
    let (mut taken, mut units) = (0_u32, [0_u64; 32]);
    for lane in super::lanes_of(mask) {
        let at = lanes.address[lane as usize] >> shift;
        let group = at as usize & (groups - 1);
        if taken >> group & 1 == 0 {
            taken |= 1 << group;
            units[group] = at;
        } else if units[group] != at {
            return None;
        }
    }
    Some(1)
}

/// The most distinct units of one group of banks.
#[cold]
fn most(lanes: &Lanes, mask: u32, shift: u32, groups: usize) -> u64 {
    let (mut units, mut distinct) = ([0_u64; 32], 0);
    let mut counts = [0_u8; 32];
    for lane in super::lanes_of(mask) {
        let at = lanes.address[lane as usize] >> shift;
        if !units[..distinct].contains(&at) {
            units[distinct] = at;
            distinct += 1;
            counts[at as usize & (groups - 1)] += 1;
        }
    }
    counts.into_iter().max().map_or(0, u64::from)
}

/// Distinct 32-byte sectors that a warp's global access touches.
pub fn sectors(lanes: &Lanes) -> u64 {
    let mut sectors = [0_u64; 32];
    let mut count = 0;
    let mut ascending = true;
    for lane in super::lanes_of(lanes.mask) {
        let sector = lanes.address[lane as usize] >> 5;
        if count > 0 && sectors[count - 1] == sector {
            continue;
        }
        ascending &= count == 0 || sectors[count - 1] < sector;
        sectors[count] = sector;
        count += 1;
    }
    if ascending {
        return count as u64;
    }
    let sectors = &mut sectors[..count];
    sectors.sort_unstable();
    1 + sectors.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: u32, address: impl Fn(u64) -> u64) -> ((u64, u64), u64) {
        let address = std::array::from_fn(|lane| address(lane as u64));
        let lanes = Lanes { warp: 0, mask: !0, address: &address, bytes };
        (wavefronts(&lanes), sectors(&lanes))
    }

    #[test]
    fn banks_and_sectors() {
        assert_eq!(of(4, |lane| lane * 4), ((1, 1), 4));
        assert_eq!(of(4, |_| 64), ((1, 1), 1), "broadcast");
        assert_eq!(of(4, |lane| lane * 8), ((2, 1), 8), "two-way conflict");
        assert_eq!(of(4, |lane| lane * 128), ((32, 1), 32), "one bank");
        assert_eq!(of(8, |lane| lane * 8), ((2, 2), 8));
        assert_eq!(of(16, |lane| lane * 16), ((4, 4), 16));
        assert_eq!(of(16, |lane| lane * 128), ((32, 4), 32), "rows of 128 bytes with no swizzle");
        assert_eq!(of(2, |lane| lane * 2), ((1, 1), 2));
        assert_eq!(of(4, |lane| (31 - lane) * 4), ((1, 1), 4), "descending");
    }
}
