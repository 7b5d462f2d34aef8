//! The ingress hooks to choose from, and which of them an interface has.

use serde::Serialize;

use crate::error::{Error, Result};

/// Which ingress hook to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// Native XDP, else generic XDP, else tc.
    #[default]
    Auto,
    /// XDP in the driver, or fail.
    Native,
    /// XDP in the kernel's generic receive path, or fail.
    Generic,
    /// A tc classifier with the ring buffer, or fail.
    Tc,
}

impl std::str::FromStr for Attach {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            "tc" => Ok(Self::Tc),
            _ => Err(Error::invalid("attach mode", format_args!("'{text}' is none of auto, native, generic, tc"))),
        }
    }
}

/// The ingress hook in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP in the kernel's generic receive path.
    Generic,
    /// A tc classifier.
    Tc,
}

impl Mode {
    /// `native`, `generic` or `tc`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}

/// The hooks that are attached, and why no faster ones are.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The interface.
    pub interface: String,
    /// The ingress hook.
    pub mode: Mode,
    /// `tcx` or `clsact`: what carries the classifiers.
    pub classifier: &'static str,
    /// AF_XDP sockets that receive replies; with none, the ring buffer does.
    pub sockets: usize,
    /// Why a faster mode is not used, a sentence each.
    pub notes: Vec<String>,
}

/// In a note, the text between a hook and the program that holds it.
pub(super) const HELD_BY: &str = " is taken by ";

impl Report {
    /// The notes without the holder of the XDP hook, which may be a process of another user: for clients of the
    /// service.
    pub fn notes_without_holder(&self) -> Vec<String> {
        let without = |note: &String| match note.split_once(HELD_BY) {
            Some((hook, _)) => format!("{hook}{HELD_BY}another program"),
            None => note.clone(),
        };
        self.notes.iter().map(without).collect()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let delivery = if self.sockets > 0 { "AF_XDP" } else { "ring buffer" };
        let ingress = match self.mode {
            Mode::Native => "native XDP",
            Mode::Generic => "generic XDP",
            Mode::Tc => self.classifier,
        };
        write!(f, "{ingress} + {delivery} on {}, {} egress", self.interface, self.classifier)
    }
}
