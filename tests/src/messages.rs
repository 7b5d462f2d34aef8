//! Messages of programs on stderr.

/// Whether a program of Rust has panicked. Not counted: the standard library has no other way to report that there is no
/// memory for the signal stack of a new thread, and then aborts the process.
pub fn has_panicked(stderr: &str) -> bool {
    stderr.matches("panicked at").count() > stderr.matches("failed to allocate an alternative stack").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_abort_for_lack_of_a_signal_stack_is_no_panic() {
        let abort = "thread 'close' panicked at stack_overflow.rs:236:13:\nfailed to allocate an alternative stack: no";
        assert!(!has_panicked(abort) && !has_panicked("crafter: an error"));
        assert!(has_panicked("thread 'main' panicked at src/main.rs:1:1:\nno"));
        assert!(has_panicked(&format!("{abort}\nthread 'main' panicked at src/main.rs:1:1:\nno")));
    }
}
