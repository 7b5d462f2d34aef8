//! The shell of `crafter lab run` on a terminal.

use std::{fs, process::Command};

use nix::unistd::Pid;

use super::{terminal::Terminal, wait};

/// `crafter lab run` as a login gives it a terminal: as the controlling one, behind a process that waits for it.
fn shell(home: &std::path::Path, shell: &str, script: &str) -> Terminal {
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_crafter")]);
    command.env("HOME", home).env("HISTFILE", "").env("SHELL", shell).envs([("LC_ALL", "C"), ("INPUTRC", "/dev/null")]);
    command.env_remove("PS1").env_remove("PROMPT_COMMAND").env("ENV", "$HOME/shrc");
    Terminal::new(command)
}

#[test]
fn the_prompt_is_the_users_own_and_marked() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(".bashrc"), "PS1='bash prompt> '; greeting=hello\n").unwrap();
    fs::write(home.path().join("shrc"), "PS1='sh prompt> '; greeting=hello\n").unwrap();
    let before = fs::read_dir(home.path()).unwrap().count();
    for (program, prompt) in [("/bin/bash", "(lab) bash prompt> "), ("/bin/dash", "(lab) sh prompt> ")] {
        let mut terminal = shell(home.path(), program, "\"$1\" lab run");
        terminal
            .shows("lab: web server http://web.lab.test/, DNS server for lab.test, both at 192.0.2.1 and 2001:db8::1");
        terminal.shows("lab: the network ends with this shell; `exit` or Ctrl-D ends the shell");
        terminal.shows(prompt);
        terminal.keys("echo $greeting $ENV $((40 + 2)); getent ahostsv4 web.lab.test\n");
        terminal.shows("hello $HOME/shrc 42");
        terminal.shows("192.0.2.1");
        terminal.shows(prompt);
        // Ctrl-C ends what runs in the shell, and neither the shell nor the lab.
        terminal.keys("sleep 100\n");
        terminal.shows("sleep 100");
        std::thread::sleep(std::time::Duration::from_millis(500));
        terminal.keys("\x03");
        terminal.shows(prompt);
        terminal.keys("exit 5\n");
        terminal.shows("lab: RST segments that reached the server: 0");
        assert_eq!(wait(&mut terminal.child), 5, "{}", terminal.said());
        assert!(!terminal.said().contains("job control"), "{}", terminal.said());
    }
    // What sets the prompt anew before each command is followed.
    fs::write(home.path().join(".bashrc"), "PROMPT_COMMAND='PS1=\"anew> \"'\n").unwrap();
    let mut terminal = shell(home.path(), "/bin/bash", "\"$1\" lab run -q");
    terminal.shows("(lab) anew> ");
    terminal.keys("false\n");
    terminal.shows("(lab) anew> ");
    terminal.keys("\x04");
    assert_eq!(wait(&mut terminal.child), 1, "{}", terminal.said());
    assert!(!terminal.said().contains("lab: "), "{}", terminal.said());
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), before, "files in $HOME");
}

#[test]
fn the_terminal_is_given_back() {
    let home = tempfile::tempdir().unwrap();
    // sh without job control does not take it back itself: it would be stopped as it reads.
    for program in ["/bin/bash", "/bin/dash"] {
        let mut terminal = shell(home.path(), program, "\"$1\" lab run -q; read line; echo \"got $line\"");
        terminal.shows("(lab) ");
        terminal.keys("exit\n");
        // dash says nothing when it ends: wait until the terminal has changed hands.
        let own = nix::unistd::getpgid(Some(Pid::from_raw(terminal.child.id() as i32)));
        assert!(own.is_ok());
        std::thread::sleep(std::time::Duration::from_millis(500));
        terminal.keys("a line\n");
        terminal.shows("got a line");
        assert_eq!(wait(&mut terminal.child), 0);
    }
}

/// A shell with job control, in which `crafter lab run` is a job as any other.
fn outer(home: &std::path::Path, shell: &str) -> Terminal {
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", "bash", "--norc", "-i"]);
    command.env("CRAFTER", env!("CARGO_BIN_EXE_crafter")).env("SHELL", shell).env("PS1", "outer> ");
    command.env("HOME", home).env("HISTFILE", "").envs([("LC_ALL", "C"), ("INPUTRC", "/dev/null")]);
    command.env_remove("PROMPT_COMMAND").env_remove("ENV");
    Terminal::new(command)
}

#[test]
fn a_shell_that_is_suspended_suspends_the_lab() {
    let home = tempfile::tempdir().unwrap();
    // `suspend` of bash is SIGSTOP to its own process group; dash has none, and is stopped as from outside.
    for (program, suspend) in [("/bin/bash", "suspend"), ("/bin/dash", "kill -STOP $$")] {
        let mut terminal = outer(home.path(), program);
        terminal.shows("outer> ");
        terminal.keys("$CRAFTER lab run -q\n");
        terminal.shows("(lab) ");
        for round in 0..3 {
            terminal.keys(&format!("{suspend}\n"));
            terminal.shows("Stopped");
            terminal.shows("outer> ");
            terminal.keys(&format!("echo out$((40 + {round}))side ${{CRAFTER_LAB_INTERFACE-none}}\n"));
            terminal.shows(&format!("out{}side none", 40 + round));
            terminal.shows("outer> ");
            if round == 1 {
                // In the background it cannot read from the terminal, and stops again.
                terminal.keys("bg; sleep 0.5; jobs\n");
                terminal.shows("Stopped");
                terminal.shows("outer> ");
            }
            terminal.keys("fg\n");
            terminal.keys(&format!("echo in$((40 + {round}))side $CRAFTER_LAB_INTERFACE\n"));
            terminal.shows(&format!("in{}side lab0", 40 + round));
            // The terminal is the shell's: Ctrl-C reaches what runs in it, and that alone.
            terminal.keys("sleep 100\n");
            terminal.shows("sleep 100");
            std::thread::sleep(std::time::Duration::from_millis(500));
            terminal.keys("\x03");
            terminal.shows("(lab) ");
        }
        terminal.keys("exit 6\n");
        terminal.shows("outer> ");
        terminal.keys("echo code $((100 + $?))\n");
        terminal.shows("code 106");
        terminal.keys("exit 0\n");
        assert_eq!(wait(&mut terminal.child), 0, "{}", terminal.said());
    }
}
