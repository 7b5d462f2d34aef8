//! [`Shell`]: variables and world.

use std::collections::BTreeMap;

use super::{complete::Names, world::World};
use crate::expr::object::Object;

/// Variables, and the world that statements work with.
#[derive(Debug)]
pub struct Shell<W> {
    pub(super) world: W,
    pub(super) variables: BTreeMap<String, Object>,
    pub(super) notices: Vec<String>,
    pub(super) leaving: bool,
}

impl<W: World> Shell<W> {
    /// A shell without variables.
    pub fn new(world: W) -> Self {
        Self { world, variables: BTreeMap::new(), notices: Vec::new(), leaving: false }
    }

    /// Whether `exit()` was called.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<&Object> {
        self.variables.get(name)
    }

    /// Names for completion, as of now.
    pub fn names(&self) -> Names {
        Names::new(&self.variables)
    }

    /// Returns the world.
    pub fn into_world(self) -> W {
        self.world
    }
}
