//! Which form of a kernel suits which device: a small table by class, cut down to what the device has.

use std::fmt;

/// What a choice depends on; gathered from the adapter and the device, or made up in tests.
#[derive(Debug, Clone, PartialEq)]
pub struct Traits {
    /// PCI id of the vendor.
    pub vendor: u32,
    /// Software, or what kind of hardware.
    pub device_type: wgpu::DeviceType,
    /// What the device was created with, not what its adapter could do.
    pub features: wgpu::Features,
    /// Most invocations of a workgroup.
    pub invocations: u32,
    /// Smallest and largest subgroup.
    pub subgroup_sizes: [u32; 2],
    /// Shapes of cooperative matrices; none where only the device is known.
    pub matrices: Vec<wgpu::CooperativeMatrixProperties>,
}

impl Traits {
    /// Those of an adapter, or of a device on it.
    pub(super) fn new(
        info: &wgpu::AdapterInfo,
        features: wgpu::Features,
        limits: &wgpu::Limits,
        matrices: Vec<wgpu::CooperativeMatrixProperties>,
    ) -> Self {
        Self {
            vendor: info.vendor,
            device_type: info.device_type,
            features,
            invocations: limits.max_compute_invocations_per_workgroup,
            subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
            matrices,
        }
    }
}

/// Devices that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A driver that runs on processors.
    Software,
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Apple.
    Apple,
    /// Qualcomm.
    Qualcomm,
    /// All others.
    Other,
}

impl Class {
    /// The class of a vendor's hardware, or of a software driver.
    pub fn of(traits: &Traits) -> Self {
        match (traits.device_type, traits.vendor) {
            (wgpu::DeviceType::Cpu, _) => Self::Software,
            (_, 0x10de) => Self::Nvidia,
            (_, 0x1002 | 0x1022) => Self::Amd,
            (_, 0x8086) => Self::Intel,
            (_, 0x106b) => Self::Apple,
            (_, 0x5143) => Self::Qualcomm,
            _ => Self::Other,
        }
    }

    /// What the class would take if its device had everything: the table.
    const fn wish(self) -> Tuning {
        let hardware = Tuning {
            class: self,
            path: Path::Tiles,
            owners: 32,
            wide_tiles: false,
            wide_fused: false,
            subgroups: true,
            f16: true,
            matrix: None,
            base_few: 4,
            fused_few_wide: 8,
            shrink_share: 8,
            expand_many: 16,
            route_many: 8,
        };
        match self {
            // A load costs as many scalar loads as it has lanes, whatever their addresses.
            Self::Software => Tuning { path: Path::Lanes, wide_tiles: true, wide_fused: true, ..hardware },
            Self::Amd | Self::Intel | Self::Qualcomm => Tuning { wide_fused: true, ..hardware },
            // 255 registers of a thread do not hold 8 x 8 sums and 32 numbers of B.
            Self::Nvidia => hardware,
            // Nor do Apple's 128, whose driver on Linux names Mesa as its vendor; nor the sums of 8 tokens x 8 columns beside
            // 32 weights.
            Self::Apple | Self::Other => Tuning { fused_few_wide: 4, ..hardware },
        }
    }
}

/// How many rows are multiplied by a frozen weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// Tiles in workgroup memory: every device.
    Tiles,
    /// Rows handed from lane to lane, no workgroup memory: devices with subgroup operations.
    Lanes,
    /// Cooperative matrices where x and weight are f16; tiles for other elements. No class takes it by itself, see
    /// [`Wgpu::open_with_matrices`](super::Wgpu::open_with_matrices): 8 x 8 has run on a software driver, 16 x 16 nowhere.
    Matrix,
}

/// The choices for a device: which kernels it runs, how large their tiles are, and from where on a form for many rows is
/// taken. Fields may be changed ([`Wgpu::tuned`](super::Wgpu::tuned)); what the device lacks is then refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// The row of the table that it comes from.
    pub class: Class,
    /// Products of many rows.
    pub path: Path,
    /// Lanes of a workgroup of [`Path::Lanes`], each of which owns 8 columns.
    pub owners: u32,
    /// Shrink's tiles have 8 x 8 sums a thread, not 8 x 4.
    pub wide_tiles: bool,
    /// So do the sparse form's.
    pub wide_fused: bool,
    /// Sums over a workgroup run through subgroups, not as a tree in workgroup memory.
    pub subgroups: bool,
    /// f16 elements are loaded as such, not as halves of words.
    pub f16: bool,
    /// Rows and columns of a cooperative matrix of f16 with f32 sums, where the device has a square one.
    pub matrix: Option<u32>,
    /// Most tokens of base's form for few.
    pub base_few: usize,
    /// Most tokens of fused's form for few that share 8 columns a workgroup, not 4.
    pub fused_few_wide: usize,
    /// Fewest routes an adapter, on average, of shrink's form for many.
    pub shrink_share: usize,
    /// Fewest tokens of expand's form for many.
    pub expand_many: usize,
    /// Fewest tokens of route's form for many.
    pub route_many: usize,
}

impl Tuning {
    /// What every device can do.
    pub const fn plain() -> Self {
        Self { path: Path::Tiles, subgroups: false, f16: false, ..Class::Other.wish() }
    }

    /// The device's row of the table, without what it lacks.
    pub fn of(traits: &Traits) -> Self {
        let wish = Class::of(traits).wish();
        let has = |feature| traits.features.contains(feature);
        let subgroups = has(wgpu::Features::SUBGROUP) && traits.subgroup_sizes[0] >= 4;
        let matrix = if subgroups { matrix_of(traits) } else { None };
        let path = match wish.path {
            Path::Lanes if !subgroups => Path::Tiles,
            path => path,
        };
        let f16 = wish.f16 && has(wgpu::Features::SHADER_F16);
        let owners = wish.owners.min(traits.invocations);
        Self { path, owners, subgroups: wish.subgroups && subgroups, f16, matrix, ..wish }
    }

    /// Whether sums over a workgroup run through subgroups: the other paths than tiles need them anyway.
    pub(crate) fn sums_in_subgroups(&self) -> bool {
        self.subgroups || self.path != Path::Tiles
    }

    /// Columns of a tile of [`Path::Lanes`].
    pub(crate) fn lane_columns(&self) -> usize {
        8 * self.owners as usize
    }

    /// What of this choice a device of these traits cannot do.
    pub fn refused(&self, traits: &Traits) -> Option<&'static str> {
        let most = Self::of(traits);
        let has_subgroups =
            traits.features.contains(wgpu::Features::SUBGROUP) && traits.subgroup_sizes[0] >= 4;
        match self {
            Self { owners, .. } if *owners == 0 || *owners > traits.invocations => Some("so many lanes"),
            Self { subgroups: true, .. } | Self { path: Path::Lanes, .. } if !has_subgroups => {
                Some("subgroup operations")
            }
            Self { f16: true, .. } if !traits.features.contains(wgpu::Features::SHADER_F16) => {
                Some("f16 arithmetic")
            }
            Self { path: Path::Matrix, matrix, .. } if matrix.is_none() || *matrix != most.matrix => {
                Some("cooperative matrices of that shape")
            }
            _ => None,
        }
    }
}

/// Where f16 times f16 into f32 is there as a square of 16 or 8, exactly: another shape would compute wrong numbers.
fn matrix_of(traits: &Traits) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    // lavapipe lists its matrices at every width of its vectors and has them at subgroups of 8: at 4 it refuses the
    // device, at 16 its compiler crashes.
    let elsewhere = traits.device_type == wgpu::DeviceType::Cpu && traits.subgroup_sizes != [8, 8];
    if !traits.features.contains(needed) || elsewhere {
        return None;
    }
    let square = |m: &wgpu::CooperativeMatrixProperties, n: u32| {
        [m.m_size, m.n_size, m.k_size] == [n; 3] && m.ab_type == F16 && m.cr_type == F32
    };
    [16, 8].into_iter().find(|&n| traits.matrices.iter().any(|m| square(m, n) && !m.saturating_accumulation))
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, path) =
            (format!("{:?}", self.class).to_lowercase(), format!("{:?}", self.path).to_lowercase());
        write!(f, "{class}: {path}")?;
        if let (Path::Matrix, Some(n)) = (self.path, self.matrix) {
            write!(f, " of {n} x {n}")?;
        }
        let have = |has: bool| if has { "" } else { "no " };
        write!(f, ", {}subgroups, {}f16", have(self.subgroups), have(self.f16))?;
        write!(
            f,
            ", base few {}, shrink share {}, expand many {}, route many {}",
            self.base_few, self.shrink_share, self.expand_many, self.route_many
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu::{CooperativeMatrixProperties, CooperativeScalarType, DeviceType, Features};

    fn traits(vendor: u32, device_type: DeviceType, features: Features) -> Traits {
        Traits {
            vendor,
            device_type,
            features,
            invocations: 256,
            subgroup_sizes: [4, 128],
            matrices: Vec::new(),
        }
    }

    fn shape([m, n, k]: [u32; 3], cr: CooperativeScalarType) -> CooperativeMatrixProperties {
        CooperativeMatrixProperties {
            m_size: m,
            n_size: n,
            k_size: k,
            ab_type: CooperativeScalarType::F16,
            cr_type: cr,
            saturating_accumulation: false,
        }
    }

    const ALL: Features =
        Features::SUBGROUP.union(Features::SHADER_F16).union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

    #[test]
    fn a_device_without_features_takes_tiles() {
        for (vendor, kind) in
            [(0, DeviceType::Cpu), (0x10de, DeviceType::DiscreteGpu), (1, DeviceType::Other)]
        {
            let tuning = Tuning::of(&traits(vendor, kind, Features::empty()));
            assert_eq!((tuning.path, tuning.subgroups, tuning.f16), (Path::Tiles, false, false));
        }
    }

    #[test]
    fn classes_take_their_rows() {
        let path = |vendor, kind| Tuning::of(&traits(vendor, kind, ALL)).path;
        assert_eq!(path(0x10de, DeviceType::Cpu), Path::Lanes, "software, whatever it pretends");
        assert_eq!(path(0x10de, DeviceType::DiscreteGpu), Path::Tiles);
        let class = |vendor| Class::of(&traits(vendor, DeviceType::IntegratedGpu, ALL));
        let classes = [0x10de, 0x1002, 0x8086, 0x106b, 0x5143, 7].map(class);
        use Class::{Amd, Apple, Intel, Nvidia, Other, Qualcomm};
        assert_eq!(classes, [Nvidia, Amd, Intel, Apple, Qualcomm, Other]);
    }

    #[test]
    fn only_an_exact_shape_is_taken() {
        use CooperativeScalarType::{F16, F32};
        let of = |matrices: Vec<CooperativeMatrixProperties>, features| {
            let traits = Traits { matrices, ..traits(0x10de, DeviceType::DiscreteGpu, features) };
            let tuning = Tuning::of(&traits);
            assert_eq!(tuning.path, Path::Tiles, "only who asks gets matrices");
            tuning.matrix
        };
        assert_eq!(of(vec![shape([16, 8, 16], F32), shape([16, 16, 16], F16)], ALL), None);
        assert_eq!(of(vec![shape([32, 32, 32], F32)], ALL), None);
        assert_eq!(of(vec![shape([8; 3], F32), shape([16; 3], F32)], ALL), Some(16));
        assert_eq!(of(vec![shape([8; 3], F32)], ALL), Some(8));
        let saturating = CooperativeMatrixProperties { saturating_accumulation: true, ..shape([8; 3], F32) };
        assert_eq!(of(vec![saturating], ALL), None);
        assert_eq!(of(vec![shape([16; 3], F32)], ALL - Features::SHADER_F16), None);
    }

    #[test]
    fn what_the_device_lacks_is_refused() {
        let bare = traits(0, DeviceType::Cpu, Features::empty());
        let full = traits(0, DeviceType::Cpu, ALL);
        let tuning = Tuning::of(&full);
        assert_eq!(tuning.refused(&full), None);
        assert_eq!(tuning.refused(&bare), Some("subgroup operations"));
        assert_eq!(Tuning::of(&bare).refused(&full), None, "less than there is");
        let f16 = Tuning { f16: true, ..Tuning::of(&bare) };
        assert_eq!(f16.refused(&bare), Some("f16 arithmetic"));
        let matrix = Tuning { path: Path::Matrix, matrix: Some(16), ..tuning };
        assert_eq!(matrix.refused(&full), Some("cooperative matrices of that shape"));
        let eight = vec![shape([8; 3], CooperativeScalarType::F32)];
        let eight = Traits { matrices: eight, subgroup_sizes: [8, 8], ..full };
        assert_eq!(matrix.refused(&eight), Some("cooperative matrices of that shape"));
        assert_eq!(Tuning { matrix: Some(8), ..matrix }.refused(&eight), None);
        let wider = Traits { subgroup_sizes: [16, 16], ..eight };
        assert!(Tuning { matrix: Some(8), ..matrix }.refused(&wider).is_some());
    }

    #[test]
    fn small_subgroups_are_none() {
        let odd = Traits { subgroup_sizes: [1, 128], ..traits(0, DeviceType::Cpu, ALL) };
        assert_eq!(Tuning::of(&odd).path, Path::Tiles);
    }

    #[test]
    fn it_prints_itself() {
        let text = Tuning::of(&traits(0, DeviceType::Cpu, ALL)).to_string();
        assert_eq!(
            text,
            "software: lanes, subgroups, f16, base few 4, shrink share 8, expand many 16, route many 8"
        );
    }
}
