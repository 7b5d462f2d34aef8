//! Option lists of IPv4 and TCP headers.

use crate::view::option::{ListItem, OptionList};

/// An option of an option list.
pub(crate) trait ListOption: Sized {
    /// End of the list (kind 0).
    const END: Self;
    /// Padding (kind 1).
    const FILLER: Self;
    /// Usual number of options, allocated at once.
    const USUAL: usize;

    /// The option for a kind and its data.
    fn read(kind: u8, data: &[u8]) -> Self;
    /// Bytes that are not options.
    fn rest(bytes: &[u8]) -> Self;
}

/// Parses option bytes. Building the options gives the same bytes.
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
