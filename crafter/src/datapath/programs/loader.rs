//! aya's loader, without the types of the kernel.

use std::{env::consts::ARCH, thread};

use aya::EbpfLoader;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

/// The calls that open a file.
#[cfg(target_arch = "x86_64")]
const OPENING: &[libc::c_long] = &[libc::SYS_openat, libc::SYS_open];
#[cfg(not(target_arch = "x86_64"))]
const OPENING: &[libc::c_long] = &[libc::SYS_openat];

/// A loader that has not read the types of the kernel, where that can be prevented.
///
/// aya needs them for CO-RE relocations, which the object does not have; a test checks that. In version 0.14,
/// [`EbpfLoader::new`] reads and parses them nevertheless: 5 MB and 160,000 types, which is a third of the processor
/// time of `crafter sr1`. aya 0.15 reads them only if [`EbpfLoader::btf`] does not say otherwise.
///
/// Here, a thread makes the loader that may not open files. Its filter ends with it, and does not need privileges. Where
/// filters are not possible, aya reads the types.
pub(super) fn loader<'a>() -> EbpfLoader<'a> {
    let made = thread::Builder::new().spawn(|| {
        forbid_opening();
        EbpfLoader::new()
    });
    made.ok().and_then(|thread| thread.join().ok()).unwrap_or_default()
}

/// Has each call of this thread that opens a file fail with ENOENT from now on. Does nothing if the kernel, or a filter
/// of this process, does not allow that.
fn forbid_opening() {
    let filter = || -> Result<BpfProgram, seccompiler::BackendError> {
        let calls = OPENING.iter().map(|&call| (call, Vec::new())).collect();
        let refuse = SeccompAction::Errno(libc::ENOENT as u32);
        SeccompFilter::new(calls, SeccompAction::Allow, refuse, ARCH.try_into()?)?.try_into()
    };
    match filter().map(|filter| apply_filter(&filter)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("aya reads the types of the kernel: {error}"),
        Err(error) => log::debug!("aya reads the types of the kernel: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{self, Write};

    use aya_obj::{Object, btf::Btf};

    use super::*;
    use crate::datapath::program::OBJECT;

    /// The beginning of a text; writing the rest fails.
    #[derive(Default)]
    struct Beginning(String);

    impl Write for Beginning {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.push_str(text);
            if self.0.len() > 200 { Err(fmt::Error) } else { Ok(()) }
        }
    }

    fn begins(loader: &EbpfLoader<'_>) -> String {
        let mut beginning = Beginning::default();
        let _ = write!(beginning, "{loader:?}");
        beginning.0
    }

    #[test]
    fn loader_has_no_types_of_the_kernel() {
        assert!(begins(&loader()).starts_with("EbpfLoader { btf: None"), "{}", begins(&loader()));
        // The control: without the filter, aya reads them where the kernel has them.
        if Btf::from_sys_fs().is_ok() {
            assert!(begins(&EbpfLoader::new()).starts_with("EbpfLoader { btf: Some("));
        }
        // This thread may open files.
        std::fs::File::open("/proc/self/status").unwrap();
    }

    /// With such relocations, the programs would be loaded without them.
    #[test]
    fn object_has_no_relocations_that_need_the_types_of_the_kernel() {
        assert!(!Object::parse(OBJECT).unwrap().has_btf_relocations());
    }
}
