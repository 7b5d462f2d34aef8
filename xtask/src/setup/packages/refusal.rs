//! What a package manager refuses to install.

/// A package that could not be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The package.
    pub package: String,
    /// What the package manager says.
    pub why: String,
    /// What would help.
    pub help: String,
}
