//! What `crafter --version` prints.

use std::{ffi::CStr, sync::LazyLock};

use crafter::protocol::wire::ABI;
use crafter_common::map;

/// Version, commit, date, ABIs and the version of libpcap.
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        format!(
            "{}\ncommit {}\nbuilt {}\nABI: maps {}, service {ABI}\n{}",
            env!("CARGO_PKG_VERSION"),
            env!("CRAFTER_COMMIT"),
            env!("CRAFTER_DATE"),
            map::ABI,
            libpcap(),
        )
    });
    &TEXT
}

/// The version of libpcap that this process has loaded, as libpcap describes it.
fn libpcap() -> String {
    unsafe extern "C" {
        fn pcap_lib_version() -> *const libc::c_char;
    }
    // SAFETY: pcap_lib_version(3PCAP) takes nothing and returns a static string that ends with a zero byte.
    let text = unsafe { CStr::from_ptr(pcap_lib_version()) };
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_has_commit_date_abi_and_libpcap() {
        let text = super::long();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], env!("CARGO_PKG_VERSION"));
        let abi = format!("ABI: maps {}, service 1", crafter_common::map::ABI);
        for (line, start) in lines[1..].iter().zip(["commit ", "built ", &abi, "libpcap version "]) {
            assert!(line.starts_with(start) && line.len() >= start.len(), "{text}");
        }
        assert_eq!(lines.len(), 5, "{text}");
    }
}
