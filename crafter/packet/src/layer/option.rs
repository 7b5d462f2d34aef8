//! Lists of options as IPv4 and TCP have them.

use crate::view::option::{ListItem, OptionList};

/// An option of such a list.
pub(crate) trait ListOption: Sized {
    /// End of the list (kind 0).
    const END: Self;
    /// Filler (kind 1).
    const FILLER: Self;
    /// So many are usual, hence allocated at once.
    const USUAL: usize;

    /// The option of a kind with its data.
    fn read(kind: u8, data: &[u8]) -> Self;
    /// Bytes that are no options.
    fn rest(bytes: &[u8]) -> Self;
}

/// Reads option bytes to their end; nothing is lost.
#[inline]
pub(crate) fn parse<T: ListOption>(bytes: &[u8]) -> Vec<T> {
    let mut options = Vec::with_capacity(T::USUAL);
    options.extend(OptionList::new(bytes).map(|item| match item {
        ListItem::End => T::END,
        ListItem::Nop => T::FILLER,
        ListItem::Option { kind, data } => T::read(kind, data),
        ListItem::Rest(rest) => T::rest(rest),
    }));
    options
}
