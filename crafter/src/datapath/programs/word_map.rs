//! An array map of bit sets that only this process writes.

use std::collections::HashMap;

use aya::{
    Pod,
    maps::{Array, MapData, MapError},
};

/// An array map, and what was written to it: a change takes one system call, or none if it changes nothing.
pub(super) struct WordMap<W: Pod> {
    map: Array<MapData, W>,
    /// The words that are not zero.
    words: HashMap<u32, W>,
}

impl<W: Pod + Default + PartialEq> WordMap<W> {
    /// A map to which nothing was written yet.
    pub(super) fn new(map: Array<MapData, W>) -> Self {
        Self { map, words: HashMap::new() }
    }

    /// Replaces a word.
    ///
    /// # Errors
    /// Those of the kernel; the word is unchanged then.
    pub(super) fn change(&mut self, index: u32, change: impl FnOnce(W) -> W) -> Result<(), MapError> {
        let before = self.words.get(&index).copied().unwrap_or_default();
        let after = change(before);
        if after == before {
            return Ok(());
        }
        self.map.set(index, after, 0)?;
        if after == W::default() {
            self.words.remove(&index);
        } else {
            self.words.insert(index, after);
        }
        Ok(())
    }
}
