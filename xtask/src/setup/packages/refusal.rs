//! What a package manager refuses to install.

/// A package that could not be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The package.
    pub package: String,
    /// The reason that the package manager gives.
    pub why: String,
    /// What to do about it.
    pub help: String,
}
