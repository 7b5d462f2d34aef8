//! `crafter man` and `crafter completions`

use std::{fs, process::Command};

use super::run;

fn crafter(args: &[&str]) -> super::Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crafter"));
    command.args(args);
    run(command)
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("man1");
    let done = crafter(&["man", "--json", "--out", out.to_str().unwrap()]);
    done.succeeds();
    let mut listed: Vec<String> = serde_json::from_value(done.object("man")["files"].clone()).unwrap();
    let mut found: Vec<String> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect();
    listed.sort();
    found.sort();
    assert_eq!(listed, found);
    for name in ["crafter", "crafter-sr1", "crafter-policy-explain", "crafter-lab-run", "crafter-top"] {
        assert!(out.join(format!("{name}.1")).exists(), "{name}: {found:?}");
    }
    for path in &found {
        let page = fs::read_to_string(path).unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES"] {
            assert!(page.lines().any(|line| line == format!(".SH {section}")), "{path}: no {section}");
        }
        // groff says what it does not understand, and which lines do not fit.
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-rLL=100n", path]);
        let done = run(groff);
        done.succeeds();
        assert_eq!(done.stderr, "", "{path}");
        assert!(done.text().contains("crafter"), "{path}");
    }
}

#[test]
fn shells_accept_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let done = crafter(&["completions", shell]);
        done.succeeds();
        assert!(done.text().contains("traceroute"), "{shell}");
    }
    // bash itself takes it, and completes by it.
    let script = format!(
        "{}\nCOMP_WORDS=(crafter leas); COMP_CWORD=1; _crafter crafter leas crafter; echo \"${{COMPREPLY[*]}}\"",
        crafter(&["completions", "bash"]).text()
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]);
    let done = run(bash);
    assert_eq!((done.code, done.text().trim()), (0, "leases"), "{done:?}");
}

#[test]
fn bash_completes_layers_and_interfaces_by_the_program() {
    let program = env!("CARGO_BIN_EXE_crafter");
    let script = format!(
        "source <(CRAFTER_COMPLETE=bash {program})\n\
         complete() {{ COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _clap_complete_crafter crafter \"${{!#}}\" x; \
         echo \"${{COMPREPLY[*]}}\"; }}\n\
         complete crafter ls UD; complete crafter sr 'IP()/UD'; complete crafter sniff --interface lo"
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]);
    let done = run(bash);
    assert_eq!(done.text().lines().collect::<Vec<_>>(), ["UDP", "IP()/UDP(", "lo"], "{done:?}");
}
