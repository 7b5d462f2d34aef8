//! The shell of `crafter lab run` on a terminal.

use std::{fs, process::Command};

use nix::unistd::Pid;

use super::{terminal::Terminal, wait};

/// `crafter lab run` with a controlling terminal, as in a login session, started by a process that waits for it.
fn shell(home: &std::path::Path, shell: &str, script: &str) -> Terminal {
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_crafter")]);
    command.env("HOME", home).env("HISTFILE", "").env("SHELL", shell).envs([("LC_ALL", "C"), ("INPUTRC", "/dev/null")]);
    command.env_remove("PS1").env_remove("PROMPT_COMMAND").env("ENV", "$HOME/shrc");
    Terminal::new(command)
}

#[test]
fn prompt_is_marked_and_keeps_the_users_settings() {
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
        // Ctrl-C ends the command in the shell, but neither the shell nor the lab.
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
    // PROMPT_COMMAND may set the prompt before each command; the mark is kept.
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
fn terminal_is_restored() {
    let home = tempfile::tempdir().unwrap();
    // Without job control, sh does not take the terminal back, and would be stopped by SIGTTIN when it reads.
    for program in ["/bin/bash", "/bin/dash"] {
        let mut terminal = shell(home.path(), program, "\"$1\" lab run -q; read line; echo \"got $line\"");
        terminal.shows("(lab) ");
        terminal.keys("exit\n");
        // dash prints nothing when it ends: wait until the terminal's foreground process group has changed.
        let own = nix::unistd::getpgid(Some(Pid::from_raw(terminal.child.id() as i32)));
        assert!(own.is_ok());
        std::thread::sleep(std::time::Duration::from_millis(500));
        terminal.keys("a line\n");
        terminal.shows("got a line");
        assert_eq!(wait(&mut terminal.child), 0);
    }
}

/// A shell with job control that runs `crafter lab run` as a job.
fn outer(home: &std::path::Path, shell: &str) -> Terminal {
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", "bash", "--norc", "-i"]);
    command.env("CRAFTER", env!("CARGO_BIN_EXE_crafter")).env("SHELL", shell).env("PS1", "outer> ");
    command.env("HOME", home).env("HISTFILE", "").envs([("LC_ALL", "C"), ("INPUTRC", "/dev/null")]);
    command.env_remove("PROMPT_COMMAND").env_remove("ENV");
    Terminal::new(command)
}

#[test]
fn suspending_the_shell_suspends_the_lab() {
    let home = tempfile::tempdir().unwrap();
    // bash's `suspend` sends SIGSTOP to its own process group; dash has no such command, so it gets SIGSTOP from
    // outside.
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
                // In the background it cannot read from the terminal, and is stopped again.
                terminal.keys("bg; sleep 0.5; jobs\n");
                terminal.shows("Stopped");
                terminal.shows("outer> ");
            }
            terminal.keys("fg\n");
            terminal.keys(&format!("echo in$((40 + {round}))side $CRAFTER_LAB_INTERFACE\n"));
            terminal.shows(&format!("in{}side lab0", 40 + round));
            // The shell owns the terminal: Ctrl-C reaches only the command that runs in it.
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
