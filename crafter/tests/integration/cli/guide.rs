//! Runs each line of the page "From Scapy to crafter", Scapy's and crafter's, against the same servers.

use super::{crafter, lab, run};

const PAGE: &str = include_str!("../../../docs/from-scapy.md");

/// The text of all code blocks in one language, in order.
fn blocks(language: &str) -> String {
    let fence = format!("```{language}");
    let mut inside = false;
    let mut text = String::new();
    for line in PAGE.lines() {
        match (inside, line) {
            (false, line) => inside = line == fence,
            (true, "```") => inside = false,
            (true, line) => text += &format!("{line}\n"),
        }
    }
    assert!(text.lines().count() >= 8, "the page has its blocks of {language}: {text}");
    text
}

#[test]
fn crafter_examples_of_the_page_work() {
    let lab = lab();
    let done = crafter(&lab, &["shell", "-c", &blocks("crafter")]);
    done.succeeds();
    let text = done.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("\"192.0.2.1\""), "{text}");
    assert_eq!(lines.next(), Some("###[ IP ]###"), "{text}");
    assert!(text.contains("###[ TCP ]###\n  sport           = 80\n"), "{text}");
    assert!(text.lines().any(|line| line == "\"SA\""), "{text}");
    let answers = text.lines().filter(|line| line.contains("192.0.2.1:80 > 192.0.2.2:")).count();
    assert!(answers > 1, "an ACK, and the page: {text}");
    assert_eq!(text.lines().last(), Some("True"), "the page is an HTTP response: {text}");
    assert!(lab.tap().segments().unwrap().is_empty(), "no RST");
}

#[test]
fn scapy_examples_of_the_page_work() {
    let lab = lab();
    let mut python = lab.command("/usr/bin/python3");
    python.args(["-c", &blocks("python")]);
    let done = run(python);
    done.succeeds();
    let text = done.text();
    assert_eq!(text.lines().next(), Some("192.0.2.1"), "{done:?}");
    assert!(text.lines().any(|line| line == "SA"), "{done:?}");
    assert_eq!(text.lines().last(), Some("True True"), "{done:?}");
}
