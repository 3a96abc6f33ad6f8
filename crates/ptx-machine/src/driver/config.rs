//! The device that the machine reports, from the environment.

use std::env;
use std::str::FromStr;

use super::codes::Code;

/// A variable, what it must hold, and whether it does.
type Variable = (&'static str, &'static str, fn(&str) -> bool);

const VARIABLES: [Variable; 8] = [
    ("PTX_MACHINE_SM", "the compute capability of a device, such as 80", is_device),
    ("PTX_MACHINE_DRIVER", "a driver's version, such as 12000", |text| in_range(text, 9000, 20_000)),
    ("PTX_MACHINE_SEED", "a number", |text| in_range(text, 0, u64::MAX)),
    ("PTX_MACHINE_RESIDENT", "a number of blocks", |text| in_range(text, 1, u64::from(u32::MAX))),
    ("PTX_MACHINE_LIMIT", "a number of instructions", |text| in_range(text, 1, u64::MAX)),
    ("PTX_MACHINE_SITES", "0 or 1", |text| in_range(text, 0, 1)),
    ("PTX_MACHINE_PTX", "a file", |text| !text.is_empty()),
    ("PTX_MACHINE_COUNTERS", "a file", |text| !text.is_empty()),
];

fn is_device(text: &str) -> bool {
    const DEVICES: [u32; 19] =
        [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121];
    text.parse().is_ok_and(|sm| DEVICES.contains(&sm))
}

fn in_range(text: &str, least: u64, most: u64) -> bool {
    text.parse().is_ok_and(|number: u64| (least..=most).contains(&number))
}

/// What is wrong with a variable of the machine's; none for others.
fn wrong(name: &str, value: Option<&str>) -> Option<String> {
    if !name.starts_with("PTX_MACHINE_") {
        return None;
    }
    let Some((_, what, holds)) = VARIABLES.iter().find(|variable| variable.0 == name) else {
        return Some(format!("{name} is no variable of the machine"));
    };
    match value {
        Some(value) if holds(value.trim()) => None,
        _ => Some(format!("{name}={} is not {what}", value.unwrap_or("?"))),
    }
}

/// Refuses an environment that does not say what it seems to say.
pub fn check_environment() -> Result<(), Code> {
    let mut good = true;
    for (name, value) in env::vars_os() {
        if let Some(why) = name.to_str().and_then(|name| wrong(name, value.to_str())) {
            eprintln!("ptx machine: {why}");
            good = false;
        }
    }
    if good { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

/// A number from the environment, which [`check_environment`] has seen.
pub fn number<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.trim().parse().ok()
}

/// The device and the driver that are reported.
#[derive(Debug, Clone)]
pub struct Config {
    /// Compute capability times ten: `PTX_MACHINE_SM`.
    pub sm: u32,
    /// The driver's version, as 12000: `PTX_MACHINE_DRIVER`.
    pub driver: i32,
}

impl Config {
    /// From the environment.
    pub fn read() -> Self {
        Self {
            sm: number("PTX_MACHINE_SM").unwrap_or(80),
            driver: number("PTX_MACHINE_DRIVER").unwrap_or(12000),
        }
    }

    /// The newest PTX that the driver takes, times ten.
    pub fn ptx(&self) -> u32 {
        let (major, minor) = (self.driver / 1000, self.driver % 1000 / 10);
        let version = match (major, minor) {
            (..=10, minor) => 63 + minor,
            (11, minor) => 70 + minor,
            (12, ..=5) => 80 + minor,
            (12, minor) => 79 + minor,
            (major, minor) => (major - 4) * 10 + minor,
        };
        version.unsigned_abs()
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        match self.sm {
            ..=75 => 40,
            80 => 108,
            86 => 84,
            89 => 128,
            _ => 132,
        }
    }

    /// Threads that a multiprocessor holds.
    pub fn threads(&self) -> u32 {
        match self.sm {
            ..=75 => 1024,
            86 | 89 | 120.. => 1536,
            _ => 2048,
        }
    }

    /// Blocks that a multiprocessor holds.
    pub fn blocks(&self) -> u32 {
        match self.sm {
            ..=75 | 86 => 16,
            89 => 24,
            _ => 32,
        }
    }

    /// Shared memory of a multiprocessor, in bytes.
    pub fn shared(&self) -> u32 {
        let kib = match self.sm {
            ..=75 => 64,
            80 | 87 => 164,
            86 | 89 | 120.. => 100,
            _ => 228,
        };
        kib << 10
    }

    /// Shared memory that each block costs beside its own.
    pub fn shared_reserved(&self) -> u32 {
        if self.sm <= 75 { 0 } else { 1024 }
    }

    /// Shared memory that a block may ask for.
    pub fn shared_of_block(&self) -> u32 {
        self.shared() - self.shared_reserved()
    }

    /// Blocks of a kernel on a multiprocessor; registers are not known and do not count.
    pub fn occupancy(&self, threads: u32, shared: u32) -> u32 {
        let threads = threads.max(1).next_multiple_of(32);
        let by_threads = self.threads() / threads;
        let by_shared = self.shared() / (shared + self.shared_reserved()).max(1);
        if shared > self.shared_of_block() { 0 } else { by_threads.min(by_shared).min(self.blocks()) }
    }

    /// A device attribute by its number; what the machine has no number for is zero.
    pub fn attribute(&self, attribute: i32) -> Option<i32> {
        let value = match attribute {
            1..=3 => 1024,
            4 => 64,
            5 | 11 => i32::MAX as u32,
            6 | 7 => 65535,
            8 => 48 << 10,
            9 => 64 << 10,
            10 => 32,
            12 | 82 => 64 << 10,
            13 => 1_410_000,
            14 => 512,
            16 => self.multiprocessors(),
            31 | 95 => 1,
            36 => 1_215_000,
            37 => 5120,
            38 => 40 << 20,
            39 => self.threads(),
            40 => 3,
            75 => self.sm / 10,
            76 => self.sm % 10,
            81 => self.shared(),
            97 => self.shared_of_block(),
            106 => self.blocks(),
            111 => self.shared_reserved(),
            // No pools (115), no managed memory (83), no unified addresses (41).
            15..160 => 0,
            _ => return None,
        };
        i32::try_from(value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_are_refused() {
        for (name, value) in
            [("SM", "80"), ("DRIVER", "12080"), ("SEED", " 7 "), ("SITES", "1"), ("RESIDENT", "1")]
        {
            assert_eq!(wrong(&format!("PTX_MACHINE_{name}"), Some(value)), None);
        }
        for (name, value) in [
            ("SM", "sm_80"),
            ("SM", "8.0"),
            ("SM", "81"),
            ("SM", ""),
            ("DRIVER", "12.4"),
            ("SEED", "-1"),
            ("RESIDENT", "0"),
            ("LIMIT", "1e9"),
            ("SITES", "yes"),
            ("PTX", ""),
            ("SEEDS", "1"),
        ] {
            assert!(wrong(&format!("PTX_MACHINE_{name}"), Some(value)).is_some(), "{name}={value}");
        }
        assert_eq!(wrong("PATH", None), None);
    }

    #[test]
    fn ptx_of_drivers() {
        for (driver, ptx) in [(11000, 70), (11080, 78), (12000, 80), (12050, 85), (12080, 87), (13000, 90)] {
            assert_eq!(Config { sm: 80, driver }.ptx(), ptx, "{driver}");
        }
    }

    #[test]
    fn occupancy_from_threads_and_shared_memory() {
        let config = Config { sm: 80, driver: 12000 };
        assert_eq!(config.occupancy(128, 0), 16);
        assert_eq!(config.occupancy(128, 48 << 10), 3);
        assert_eq!(config.occupancy(32, 0), 32);
        assert_eq!(config.occupancy(1024, 163 << 10), 1);
        assert_eq!(config.occupancy(1024, 164 << 10), 0);
    }
}
