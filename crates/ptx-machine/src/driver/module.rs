//! PTX text to functions.

use std::sync::Arc;

use super::codes::Code;
use super::config::Config;
use super::ffi::{Host, Out, Text};
use super::in_context;
use super::machine::Machine;
use crate::ptx;

/// A loaded module.
#[derive(Debug)]
pub struct Loaded {
    text: Arc<ptx::Module>,
}

/// A kernel of a module, with what was set on it.
#[derive(Debug, Clone)]
pub struct Function {
    /// The module's handle.
    module: usize,
    pub text: Arc<ptx::Module>,
    pub name: String,
    /// Dynamic shared memory that a launch may ask for.
    pub dynamic: u32,
    carveout: i32,
}

/// Shared memory that needs no attribute.
const SHARED_DEFAULT: u32 = 48 << 10;

impl Function {
    /// The kernel; loading has found it.
    pub fn kernel(&self) -> Result<&ptx::Kernel, Code> {
        self.text.kernel(&self.name).ok_or(Code::NOT_FOUND)
    }

    /// Static shared memory.
    pub fn shared(&self) -> u32 {
        self.kernel().map_or(0, |kernel| kernel.static_shared_bytes)
    }

    /// Threads that a block may have.
    pub fn threads(&self) -> u32 {
        self.kernel().ok().and_then(|kernel| kernel.max_threads).unwrap_or(1024)
    }
}

/// Whether driver and device take a text of this version and target.
fn accept(text: &str, config: &Config) -> Result<(), Code> {
    let directive = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        Some(line.split([',', '/']).next()?.trim().to_owned())
    };
    let version = directive(".version").ok_or(Code::INVALID_PTX)?;
    let (major, minor) = version.split_once('.').ok_or(Code::INVALID_PTX)?;
    let number = |text: &str| text.trim().parse::<u32>().map_err(|_| Code::INVALID_PTX);
    if number(major)? * 10 + number(minor)? > config.ptx() {
        eprintln!("ptx machine: PTX {version} needs a newer driver than {}", config.driver);
        return Err(Code::UNSUPPORTED_PTX_VERSION);
    }
    let target = directive(".target").ok_or(Code::INVALID_PTX)?;
    let digits = target.strip_prefix("sm_").ok_or(Code::INVALID_PTX)?;
    let plain = digits.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let sm = number(plain)?;
    // A letter asks for exactly this device.
    if sm > config.sm || (plain.len() != digits.len() && sm != config.sm) {
        eprintln!("ptx machine: a module for {target} on sm_{}", config.sm);
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    Ok(())
}

/// The text of the file that `PTX_MACHINE_PTX` names: it is loaded instead of the program's own.
fn replacement() -> Result<Option<String>, Code> {
    let Some(path) = std::env::var_os("PTX_MACHINE_PTX") else { return Ok(None) };
    std::fs::read_to_string(&path).map(Some).map_err(|error| {
        eprintln!("ptx machine: PTX_MACHINE_PTX: {}: {error}", path.display());
        Code::INVALID_PTX
    })
}

impl Machine {
    fn load(&mut self, module: Out<usize>, text: &str) -> Result<(), Code> {
        self.refuse_unsafe_call()?;
        let instead = replacement()?;
        let text = instead.as_deref().unwrap_or(text);
        accept(text, &self.config)?;
        let parsed = ptx::parse(text).map_err(|error| {
            eprintln!("ptx machine: {error}");
            Code::INVALID_PTX
        })?;
        // As ptxas does.
        if let Some(kernel) =
            parsed.kernels.values().find(|kernel| kernel.static_shared_bytes > SHARED_DEFAULT)
        {
            let (name, bytes) = (&kernel.name, kernel.static_shared_bytes);
            eprintln!(
                "ptx machine: {name} has {bytes} bytes of static shared memory, at most {SHARED_DEFAULT}"
            );
            return Err(Code::INVALID_PTX);
        }
        let handle = self.handle();
        self.modules.insert(handle, Loaded { text: Arc::new(parsed) });
        module.give(handle)
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: Out<usize>, image: Text) -> i32 {
    in_context(|machine| {
        // Binaries are not text: their first bytes are not ASCII, or name themselves.
        let text = image.get().map_err(|_| Code::NO_BINARY_FOR_GPU)?;
        if text.starts_with("\u{7f}ELF") {
            return Err(Code::NO_BINARY_FOR_GPU);
        }
        machine.load(module, &text)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: Out<usize>,
    image: Text,
    _count: u32,
    _options: Host,
    _values: Host,
) -> i32 {
    cuModuleLoadData(module, image)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoad(module: Out<usize>, path: Text) -> i32 {
    in_context(|machine| {
        let text = std::fs::read_to_string(path.get()?).map_err(|_| Code::FILE_NOT_FOUND)?;
        machine.load(module, &text)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> i32 {
    in_context(|machine| {
        machine.modules.remove(&module).ok_or(Code::INVALID_HANDLE)?;
        machine.functions.retain(|_, function| function.module != module);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(function: Out<usize>, module: usize, name: Text) -> i32 {
    in_context(|machine| {
        let name = name.get()?;
        let text = machine.modules.get(&module).ok_or(Code::INVALID_HANDLE)?.text.clone();
        text.kernel(&name).ok_or(Code::NOT_FOUND)?;
        // The same function has the same handle, as what was set on it belongs to it.
        let held = machine.functions.iter().find(|(_, held)| held.module == module && held.name == name);
        if let Some((&handle, _)) = held {
            return function.give(handle);
        }
        let mut new = Function { module, text, name, dynamic: 0, carveout: -1 };
        new.dynamic = SHARED_DEFAULT.saturating_sub(new.shared());
        let handle = machine.handle();
        machine.functions.insert(handle, new);
        function.give(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetGlobal_v2(
    _address: Out<u64>,
    _bytes: Out<usize>,
    _module: usize,
    _name: Text,
) -> i32 {
    in_context(|_| Err(Code::NOT_FOUND))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: Out<i32>, attribute: i32, function: usize) -> i32 {
    in_context(|machine| {
        let function = machine.function(function)?;
        let found = match attribute {
            0 => function.threads(),
            1 => function.shared(),
            // Constant and local memory, registers: not known.
            2..=4 => 0,
            5 => machine.config.ptx(),
            6 => machine.config.sm,
            7 => 0,
            8 => function.dynamic,
            9 => return value.give(function.carveout),
            _ => return Err(Code::INVALID_VALUE),
        };
        value.give(found as i32)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: usize, attribute: i32, value: i32) -> i32 {
    in_context(|machine| {
        let most = machine.config.shared_of_block();
        let function = machine.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
        match attribute {
            8 => {
                let value = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
                if value > most.saturating_sub(function.shared()) {
                    return Err(Code::INVALID_VALUE);
                }
                function.dynamic = value;
            }
            9 if (-1..=100).contains(&value) => function.carveout = value,
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(function: usize, _config: i32) -> i32 {
    in_context(|machine| machine.function(function).map(drop))
}

impl Machine {
    fn blocks(&self, function: usize, threads: i32, dynamic: usize) -> Result<u32, Code> {
        let function = self.function(function)?;
        let threads =
            u32::try_from(threads).ok().filter(|&threads| threads != 0).ok_or(Code::INVALID_VALUE)?;
        let dynamic = u32::try_from(dynamic).map_err(|_| Code::INVALID_VALUE)?;
        if threads > function.threads() {
            return Ok(0);
        }
        Ok(self.config.occupancy(threads, function.shared().saturating_add(dynamic)))
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: Out<i32>,
    function: usize,
    threads: i32,
    dynamic: usize,
) -> i32 {
    in_context(|machine| blocks.give(machine.blocks(function, threads, dynamic)? as i32))
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: Out<i32>,
    function: usize,
    threads: i32,
    dynamic: usize,
    _flags: u32,
) -> i32 {
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic)
}

#[unsafe(no_mangle)]
extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    function: usize,
    blocks: i32,
    _threads: i32,
) -> i32 {
    in_context(|machine| {
        let own = machine.function(function)?.shared() + machine.config.shared_reserved();
        let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks != 0).ok_or(Code::INVALID_VALUE)?;
        bytes.give((machine.config.shared() / blocks).saturating_sub(own) as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_targets() {
        let config = Config { sm: 80, driver: 12000 };
        let of = |version, target| accept(&format!("// x\n.version {version}\n.target {target}\n"), &config);
        assert_eq!(of("7.0", "sm_80"), Ok(()));
        assert_eq!(of("8.0", "sm_75, texmode_independent"), Ok(()));
        assert_eq!(of("8.1", "sm_80"), Err(Code::UNSUPPORTED_PTX_VERSION));
        assert_eq!(of("7.8", "sm_90"), Err(Code::NO_BINARY_FOR_GPU));
        assert_eq!(of("7.8", "sm_75a"), Err(Code::NO_BINARY_FOR_GPU));
        assert_eq!(accept("", &config), Err(Code::INVALID_PTX));
    }
}
