//! Hosts that lack something: no /sys, few open files.

use super::{lab, run};

const WEB: &str = "http://192.0.2.1/";

/// Containers may have no /sys. What the kernel half counted is known without it.
#[test]
fn commands_work_without_sys() {
    let lab = lab();
    let without = |args: &[&str]| {
        let mut command = lab.command("unshare");
        let script = "mount -t tmpfs none /sys && exec \"$0\" \"$@\"";
        command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_crafter")]).args(args);
        run(command)
    };
    let done = without(&["get", WEB]);
    done.succeeds();
    assert!(done.stderr.contains("0 RSTs suppressed"), "{done:?}");
    let done = without(&["sr", r#"IP(dst="192.0.2.1")/TCP(dport=(80,90))"#]);
    done.succeeds();
    assert!(done.stderr.contains("the kernel half counted the same"), "{done:?}");
}

#[test]
fn limit_of_open_files_is_named() {
    let lab = lab();
    let mut enough = None;
    for limit in 4..100 {
        let mut command = lab.command("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).args([env!("CARGO_BIN_EXE_crafter"), "get", WEB]);
        let done = run(command);
        if done.code == 0 {
            enough = Some(limit);
            break;
        }
        let names_it =
            ["Too many open files", "open files", "file descriptor"].iter().any(|part| done.stderr.contains(part));
        assert!(names_it, "with {limit}: {done:?}");
    }
    assert!(enough.is_some(), "a hundred do not suffice");
}
